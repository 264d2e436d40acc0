"""What the report says of machines: what serves at what cost, and what is advised."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Advice", "Answer", "Keys", "Layout", "Machine", "Network"]

Answer = Literal["keep it in DRAM", "one machine", "copies", "cluster"]
Keys = Literal["blocks", "a row a key"]


class Machine(msgspec.Struct, frozen=True):
    """One machine, of which any number is to be had; `price` is without its memory."""

    processors: int
    dram_bytes: int
    nvm_bytes: int
    network_bits_per_second: float
    price: float


class Layout(msgspec.Struct, frozen=True):
    """One way to serve it all.

    Attributes
    ----------
    machines : int
        That answer requests.
    nodes : int
        Of a cluster, beside them; 0 without one.
    copies : int
        Of all rows, in DRAM or as blocks.
    cache_bytes : int
        Of each machine that answers: rows with their bookkeeping, and heat. Where many machines
        answer, less than `dram.recommended_bytes` may be cheapest.
    dram_bytes, nvm_bytes : int
        Of all machines and nodes together.
    cost : float
        Machines and memory, in the unit of the prices.
    fits : bool
        Whether a machine's DRAM and NVM hold what they must. Figures are of no use where not.
    bound_by : str
        What the number of machines is due to.
    """

    machines: int
    nodes: int
    copies: int
    cache_bytes: int
    dram_bytes: int
    nvm_bytes: int
    cost: float
    fits: bool
    bound_by: str


class Network(msgspec.Struct, frozen=True):
    """What travels where blocks lie on other machines, and what should.

    Attributes
    ----------
    missed_rows_per_request, blocks_per_request : float
    missed_rows_per_block : float or None
        None: no block is read.
    crossover : float
        Above it blocks cost less than a row a key.
    crossover_source : str
    keys : "blocks" or "a row a key"
    bytes_per_lookup, row_a_key_bytes_per_lookup : float
    bits_per_second, row_a_key_bits_per_second : float or None
        At the rate asked for, of all machines together.
    node_processors, client_processors : float or None
        Kept busy at that rate by answering for blocks and by asking for them.
    """

    missed_rows_per_request: float
    blocks_per_request: float
    missed_rows_per_block: float | None
    crossover: float
    crossover_source: str
    keys: Keys
    bytes_per_lookup: float
    row_a_key_bytes_per_lookup: float
    bits_per_second: float | None
    row_a_key_bits_per_second: float | None
    node_processors: float | None
    client_processors: float | None


class Advice(msgspec.Struct, frozen=True):
    """Where to serve it all from, and why.

    Attributes
    ----------
    answer : str
        ``copies``: as many whole copies as there are machines, behind a router.
    scale : float
        Of how many times the log's table and traffic this is.
    saved, least_saved : float
        What the cheapest layout from NVM that fits saves against all rows in DRAM, machines
        included; and what is worth the trouble.
    times_slower : float
        Requests a second of a machine with all rows in DRAM, over those from NVM.
    machines_added : int
        By the cheapest layout, nodes included; negative where it needs fewer.
    pays_up_to_requests_per_second : float or None
        So far whole copies save as much as `least_saved`; None: nowhere.
    in_dram, in_copies, in_cluster : Layout
    network : Network
    machine : Machine
        As reckoned with.
    reasons, assumed : tuple of str
        The latter says what was given, what was taken, and by which option to say otherwise.
    """

    answer: Answer
    scale: float
    saved: float
    least_saved: float
    times_slower: float
    machines_added: int
    pays_up_to_requests_per_second: float | None
    in_dram: Layout
    in_copies: Layout
    in_cluster: Layout
    network: Network
    machine: Machine
    reasons: tuple[str, ...]
    assumed: tuple[str, ...]
