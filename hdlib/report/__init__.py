"""What is made of recorded runs: tables over seeds, figures, pages. Reads records and never trains."""
