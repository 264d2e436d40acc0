"""A store that lies in a cluster: its versions, who serves them, who may write them."""
