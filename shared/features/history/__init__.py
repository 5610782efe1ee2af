"""What is known of answers whose text is gone: a row for each generation that has ended, in SQLite or Postgres."""
