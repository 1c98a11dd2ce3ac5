"""``report.html``: a run to look at, in one file that needs no network (:func:`cmi_fast.report.page.render`)."""
