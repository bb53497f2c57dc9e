-- Where frames are is known in memory. Ids are random: in either index nearly every row dirtied a page of its own.
DROP INDEX frames_by_key;
DROP INDEX frames_by_recipient;
