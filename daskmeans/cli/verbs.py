"""The commands and what they say of themselves, known before any is imported."""

VERBS = {
    "demo": "Find the near-duplicates among the docstrings of the Python packages installed here.",
    "embed": "Turn a column of texts into embeddings.",
    "fit": "Find the centroids of embeddings.",
    "assign": "Assign every row to its cluster, with distances, and group the rows by cluster.",
    "dedup": "Decide which rows of clusters, or of embeddings, are duplicates.",
    "leak": "List the rows of TEST that have a near-duplicate in TRAIN.",
    "apply": "Write the kept rows of the original files, in the same format.",
    "run": "Fit, assign and dedup in one go; an interrupted run resumes where it stopped.",
    "info": "Describe a file, a directory or an output; show what this machine has; or forecast what steps will take.",
}
