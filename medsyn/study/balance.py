"""Orders in which readers see items and volumes: random, and balanced by Latin squares."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(secret: str, *parts: object) -> np.random.Generator:
    """Return the random numbers of one purpose.

    They follow from a secret that the key keeps: from the seed alone, which study.json says, a reader with this program
    could compute which volume is whose.
    """
    digest = hashlib.sha256(repr((secret, *parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def williams_square(n: int) -> list[list[int]]:
    """Return orders of 0 .. n - 1 (Williams 1949): n orders for even n, 2 n for odd n.

    Each thing stands equally often in each place, and directly behind each other thing equally often.
    """
    first = [0]
    for step in range(1, n):
        first.append((first[-1] + (step if step % 2 else -step)) % n)
    rows = [[(value + shift) % n for value in first] for shift in range(n)]
    return rows if n % 2 == 0 else rows + [row[::-1] for row in rows]


def balanced_orders(n: int, count: int, rng: np.random.Generator) -> list[list[int]]:
    """Return `count` random orders of n things; in n of them (odd n: 2 n) each stands equally often in each place."""
    if n == 0:
        return [[] for _ in range(count)]
    orders: list[list[int]] = []
    while len(orders) < count:
        names = rng.permutation(n)
        square = [[int(names[value]) for value in row] for row in williams_square(n)]
        orders += [square[index] for index in rng.permutation(len(square))]
    return orders[:count]


def balanced_places(n: int, num_readers: int, num_items: int, rng: np.random.Generator) -> list[list[list[int]]]:
    """Return for each reader and item an order of n methods.

    Where the number of readers is a multiple of n (odd n: 2 n), each item shows each method equally often in each
    place over the readers. The same holds for each reader over the items.
    """
    square = williams_square(n)
    names = rng.permutation(n)
    readers, items = rng.permutation(num_readers), rng.permutation(num_items)
    return [
        [[int(names[value]) for value in square[(reader + item) % len(square)]] for item in items] for reader in readers
    ]
