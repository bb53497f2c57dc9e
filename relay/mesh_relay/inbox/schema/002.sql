-- Which keys are stored is known in memory: ids are random, and each cost a page of this index, written twice.
DROP INDEX frames_by_key;
