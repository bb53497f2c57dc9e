"""The load: many raw connections on one epoll loop, cheap enough to outrun the servers."""
