/** The far end of a WebSocket, held by a test. */
export class Wire {
  sent = [];

  constructor(url) {
    this.url = url;
    queueMicrotask(() => this.onopen({}));
  }

  send(text) {
    this.sent.push(text);
  }

  close(code = 1005) {
    queueMicrotask(() => this.onclose({ code, reason: "" }));
  }

  take() {
    return this.sent.splice(0);
  }
}
