"""One page that shows a run, or two side by side."""
