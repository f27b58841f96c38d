"""The page of `brats-ldm studio`: generate, compare and walk in a browser, over the public `AsyncClient`.

`runs`, `form`, `words`, `figures` and `downloads` know no Gradio; `layout` and the tabs lay the page out; `serve` runs it.
"""
