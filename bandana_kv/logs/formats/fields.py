"""Kernels that read one field of a text row: a whole number, a time."""

from __future__ import annotations

import numpy as np

from bandana_kv.kernels.compile import kernel

__all__ = ["ISO", "NUMBER", "read_time", "read_whole"]

# what a column of times is written in
NUMBER = 1
ISO = 2

_MOST_DIGITS = 19  # of an int64
_MOST_TENTH = (2**63 - 1) // 10


@kernel
def _digits(text: np.ndarray, begin: int, end: int) -> int:
    """Return the number that the digits say, -1 if there is none, or anything else."""
    if end <= begin or end - begin > _MOST_DIGITS:
        return -1
    value = 0
    for at in range(begin, end):
        digit = text[at] - 48
        if digit < 0 or digit > 9 or value > _MOST_TENTH:
            return -1
        value = value * 10 + digit
    return max(value, -1)  # negative: the last digit was too large


@kernel
def read_whole(text: np.ndarray, begin: int, end: int, most: int) -> int:
    """Return the whole number in a field, blanks around it allowed; -1 if there is none.

    Zeros may follow a point: programs that keep numbers as floats write 12.0. Exponents may not:
    who writes 1.23457e+07 has lost digits.
    """
    while begin < end and text[begin] == 32:
        begin += 1
    while end > begin and text[end - 1] == 32:
        end -= 1
    point = begin
    while point < end and text[point] != 46:
        point += 1
    for at in range(point + 1, end):
        if text[at] != 48:
            return -1
    value = _digits(text, begin, point)
    return value if value <= most else -1


@kernel
def _fraction(text: np.ndarray, begin: int, end: int) -> int:
    """Return the billionths that the digits after a point say; further ones are dropped."""
    billionths = 0
    for i in range(9):
        digit = 0
        if begin + i < end:
            digit = text[begin + i] - 48
        billionths = billionths * 10 + digit
    for at in range(begin, end):
        if text[at] < 48 or text[at] > 57:
            return -1
    return billionths


@kernel
def _read_number(text: np.ndarray, begin: int, end: int) -> tuple[bool, int, int]:
    negative = text[begin] == 45
    if negative:
        begin += 1
    point = begin
    while point < end and text[point] != 46:
        point += 1
    whole = _digits(text, begin, point)
    if point == begin and end - point > 1:  # .5
        whole = 0
    nanos = _fraction(text, point + 1, end)
    if negative and nanos > 0:
        return whole >= 0, -whole - 1, 1_000_000_000 - nanos
    return whole >= 0 and nanos >= 0, -whole if negative else whole, nanos


@kernel
def _days(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 in the Gregorian calendar, years beginning in March."""
    if month <= 2:
        year -= 1
    since_march = (month + 9) % 12
    leaps = year // 4 - year // 100 + year // 400
    return 365 * year + leaps + (153 * since_march + 2) // 5 + day - 719_469


@kernel
def _days_of_month(year: int, month: int) -> int:
    if month == 2:
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        return 29 if leap else 28
    return 30 if month in (4, 6, 9, 11) else 31


@kernel
def _says(text: np.ndarray, begin: int, end: int, word: bytes) -> bool:
    """Return whether the text is `word`, which is in capitals, in any case."""
    if end - begin != len(word):
        return False
    for i in range(len(word)):
        byte = text[begin + i]
        if byte != word[i] and byte != word[i] + 32:
            return False
    return True


@kernel
def _read_offset(text: np.ndarray, begin: int, end: int) -> tuple[bool, int]:
    """Seconds east of Greenwich: nothing, Z, UTC, GMT, +hh, +hhmm or +hh:mm, a blank before."""
    while begin < end and text[begin] == 32:
        begin += 1
    if begin == end or _says(text, begin, end, b"Z"):
        return True, 0
    if _says(text, begin, end, b"UTC") or _says(text, begin, end, b"GMT"):
        return True, 0
    if text[begin] != 43 and text[begin] != 45:
        return False, 0
    hours = _digits(text, begin + 1, min(begin + 3, end))
    minutes = 0
    if end - begin > 3:
        at = begin + 4 if text[begin + 3] == 58 else begin + 3
        minutes = _digits(text, at, end) if end - at == 2 else -1
    good = end - begin >= 3 and 0 <= hours <= 23 and 0 <= minutes <= 59
    seconds = 3600 * hours + 60 * minutes
    return good, -seconds if text[begin] == 45 else seconds


@kernel
def _read_clock(text: np.ndarray, begin: int, end: int) -> tuple[bool, int, int]:
    """Seconds of the day and billionths: hh:mm, hh:mm:ss or hh:mm:ss.f, and a zone."""
    if end - begin < 5 or text[begin + 2] != 58:
        return False, 0, 0
    hour = _digits(text, begin, begin + 2)
    minute = _digits(text, begin + 3, begin + 5)
    second = 0
    nanos = 0
    at = begin + 5
    if end - at >= 3 and text[at] == 58:
        second = _digits(text, at + 1, at + 3)
        at += 3
        if at < end and (text[at] == 46 or text[at] == 44):
            stop = at + 1
            while stop < end and 48 <= text[stop] <= 57:
                stop += 1
            nanos = _fraction(text, at + 1, stop)
            at = stop
    good, east = _read_offset(text, at, end)
    good = good and 0 <= hour <= 24 and 0 <= minute <= 59 and 0 <= second <= 60
    of_day = 3600 * hour + 60 * minute + second
    if hour == 24 and (of_day > 86_400 or nanos > 0):  # only midnight is written so
        good = False
    return good, of_day - east, nanos


@kernel
def _read_iso(text: np.ndarray, begin: int, end: int) -> tuple[bool, int, int]:
    year = _digits(text, begin, begin + 4)
    month = _digits(text, begin + 5, begin + 7)
    day = _digits(text, begin + 8, begin + 10)
    good = year >= 0 and 1 <= month <= 12 and 1 <= day <= _days_of_month(year, month)
    seconds = 86_400 * _days(year, month, day)
    if end - begin == 10 or not good:
        return good, seconds, 0
    if text[begin + 10] != 84 and text[begin + 10] != 116 and text[begin + 10] != 32:
        return False, seconds, 0
    good, east = _read_offset(text, begin + 10, end)
    if good:  # a date and a zone, as in 2020-02-29 UTC
        return good, seconds - east, 0
    good, clock, nanos = _read_clock(text, begin + 11, end)
    return good, seconds + clock, nanos


@kernel
def read_time(text: np.ndarray, begin: int, end: int) -> tuple[int, int, int]:
    """Read a time: a number, or a date (and time of day) as in ISO 8601.

    Returns :data:`NUMBER` or :data:`ISO` (0: neither), whole units and billionths. The
    unit is the second where a date is given, else whatever the file counts in.
    """
    while begin < end and text[begin] == 32:
        begin += 1
    while end > begin and text[end - 1] == 32:
        end -= 1
    if begin == end:
        return 0, 0, 0
    if end - begin >= 10 and text[begin + 4] == 45 and text[begin + 7] == 45:
        good, whole, nanos = _read_iso(text, begin, end)
        return ISO if good else 0, whole, nanos
    good, whole, nanos = _read_number(text, begin, end)
    return NUMBER if good else 0, whole, nanos
