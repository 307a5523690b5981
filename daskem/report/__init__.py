"""What a fit looks like to a person."""

from daskem.report.convergence import Convergence, plot_convergence
from daskem.report.html import fit_html

__all__ = ["Convergence", "fit_html", "plot_convergence"]
