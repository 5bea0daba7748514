"""Work on several processes: which unit of work goes to which, and what becomes of one that dies."""
