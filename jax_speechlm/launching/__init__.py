"""One description of a job, and what each launcher has to be told of it."""
