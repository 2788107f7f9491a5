"""Plotly figures: one function a figure, results in, `go.Figure` out."""
