"""The tests of daskem; a package, so that ``python -m tests.chaos`` runs ours, whatever others have installed."""
