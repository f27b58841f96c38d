"""What every benchmark needs: timing, the machine, records, weights, the engine, requests, Markdown."""
