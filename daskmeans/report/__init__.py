"""Reports for people: the HTML page of a run, the review of pairs, and the demo."""
