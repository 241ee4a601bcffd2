"""Ten exercises along the lecture, to be filled in; docs/exercises.md says what each asks for and how to check it."""
