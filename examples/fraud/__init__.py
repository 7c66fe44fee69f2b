"""The demo: card fraud scored by customer id, from made-up data to a drift table. Start reading at `demo.py`."""
