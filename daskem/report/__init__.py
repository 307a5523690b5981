"""What a fit looks like to a person."""

from daskem.report.html import fit_html

__all__ = ["fit_html"]
