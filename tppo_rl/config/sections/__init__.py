"""The options of a run, a file for each section; an option is written here and nowhere else."""
