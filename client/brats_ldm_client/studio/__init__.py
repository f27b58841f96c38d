"""The page of `brats-ldm studio`: generate, compare and walk in a browser, over the public `AsyncClient`.

Only `layout`, `parts`, the files `tab_…` and `serve` know Gradio.
"""
