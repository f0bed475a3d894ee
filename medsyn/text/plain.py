"""Report texts as plain text: mark-up removed, and what only says that there is no text made empty.

`plain_text` is for every text that a person or a database gives, before anything else reads it. A text without mark-up
and with a word to say stays as it is, bit for bit.
"""

from __future__ import annotations

import html
import re

from medsyn.text.headers import HEADER

# What exports and databases write where there is no text: pandas, R, SQL, CT-RATE ("Not given."), report templates.
_NO_TEXT = re.compile(
    r"(?:(?:text|report|findings?|impressions?|results?|data|information|not|is|are|was|were|has|have|been|yet|there)"
    r"\s*:?\s+)*"
    r"(?:nan|nat|n/?\s?a|n\.\s?a\.?|none|null|nil|nul|undefined|empty|blank|missing|unknown|unavailable|unspecified|absent"
    r"|pending|tbd|to follow|no (?:text|report|data|information|impressions?|value|entry)"
    r"|not (?:yet )?(?:given|available|applicable|provided|specified|stated|reported|recorded|entered|dictated|found"
    r"|known|mentioned|filled(?: in)?|written|present|done|performed|supplied|documented|disclosed|included))"
    r"(?:\s+(?:given|available|provided|entered|yet|recorded|here|found|for this (?:study|exam|examination|patient)))*",
    re.IGNORECASE,
)
_LONGEST_PLACEHOLDER = 80
_EDGES = " \t\r\n.,;:!?-–—_*#/\\|<>()[]{}'\"`"
_MARKS = re.compile(r"[<&*#_\[{\\]|--|==|~~")  # without any of these there is no mark-up

_BREAKS = (
    "br|p|div|li|ul|ol|tr|td|th|table|tbody|thead|h[1-6]|hr|pre|blockquote|section|article|dl|dt|dd|body|html|paragraph"
)
_HIDDEN = re.compile(  # each runs to its own end and not past its like, so that time grows with length only
    r"<!--(?:(?!<!--).)*?-->|<\?[^<>]*\?>|<!doctype[^<>]*>"
    r"|<(style|script|head|title)\b[^<>]*>(?:(?!<(?:style|script|head|title)\b).)*?</\1\s*>",
    re.I | re.S,
)
_LABELLED = re.compile(r"<\w+\s[^<>]*?\b(?:label|title|name)\s*=\s*[\"']?([A-Za-z ]{3,30}?)[\"']?\s*/?>", re.I)
_HEADER_TAG = re.compile(rf"<((?:{HEADER}))\s*/?>", re.I)
_EMPHASISED_HEADER = re.compile(
    rf"<(b|strong|u|i|em|h[1-6]|span|font)\b[^<>]*>\s*({HEADER})\s*:?\s*</\1\s*>\s*:?", re.I
)
_BREAK_TAG = re.compile(rf"</?(?:{_BREAKS})\b[^<>]*>|</(?:{HEADER})\s*>", re.I)
# Any tag with a small letter, and those of HTML in capitals; <NAME> is a de-identified name and "<3 mm" a size.
_TAG = re.compile(
    r"</?(?=[A-Z]*[a-z])[A-Za-z][A-Za-z0-9:]*(?:\s+[\w:-]+\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>]+))*\s*/?>"
    r"|</?(?:B|I|U|S|A|EM|STRONG|SPAN|FONT|SMALL|BIG|SUP|SUB|CENTER|MARK|TT|CODE)\b[^<>]*>|</[A-Z]+>"
)
_ENTITY = re.compile(r"&(?:[a-zA-Z]{2,8}|#\d{1,6}|#x[0-9a-fA-F]{1,5});")
_RTF_GROUP = re.compile(r"\{\\(?:\*|fonttbl|colortbl|stylesheet|info)(?:[^{}]|\{[^{}]*\})*\}")
_RTF_BREAK = re.compile(r"\\(?:par|line|tab|cell|row|sect)\b ?")
_RTF_WORD = re.compile(r"\\(?:'([0-9a-f]{2})|[a-z]+-?\d* ?|[{}\\])|[{}]")
_HL7_BREAK = re.compile(r"\\\.(?:br|sp|ce|fi|nf|in|ti)[^\\\n]{0,8}\\", re.I)
_HL7_ESCAPES = {"\\T\\": "&", "\\F\\": "|", "\\S\\": "^", "\\R\\": "~", "\\E\\": "\\"}
_HL7 = re.compile(r"\\[TFSREHN]\\")
# **IMPRESSION**, __Impression:__, == Impression ==, [IMPRESSION], ### Impression ###
_MARKED_HEADER = re.compile(
    rf"(?<![^\s.!?>])[ \t]*(?:[*_=~#]+|\[|-{{2,}})[ \t]*({HEADER})[ \t]*:?[ \t]*(?:[*_=~#]+|\]|-{{2,}})"
    r"[ \t]*(?::|-{1,2}[ \t])?",
    re.I,
)
_HEADING = re.compile(r"^[ \t]*#{1,6}[ \t]+(?=\S)", re.M)
_HEADING_HEADER = re.compile(rf"^[ \t]*#{{1,6}}[ \t]+({HEADER})[ \t]*:?[ \t]*$", re.I | re.M)
_BOLD = re.compile(r"(?<![\w\[*])(\*{1,3})(?=[^\s*])([^*\n]{0,300}?[^\s*])\1(?![\w\]*])")
_UNDERLINED = re.compile(r"(?<![\w_])(_{1,2})(?=[^\s_])([^_\n]{0,300}?[^\s_])\1(?![\w_])")
_STRUCK = re.compile(r"~~[^~\n]{1,300}~~")


def plain_text(text: str) -> str:
    """Return `text` without mark-up, and "" where it only says that there is none ("Not given.", "nan", "N/A", "-").

    Removed are tags and entities of HTML and XML, RTF, the escapes of HL7, and emphasis and headings of Markdown. A
    section header in mark-up ends with a colon afterwards and begins a line.
    """
    text = text.strip()
    if _MARKS.search(text):
        text = _without_marks(text)
    return "" if is_placeholder(text) else text


def is_placeholder(text: str) -> bool:
    """Whether a text says nothing of a patient: no letter in it, or one of the words for "no text"."""
    if len(text) > _LONGEST_PLACEHOLDER:
        return not any(character.isalpha() for character in text)
    bare = text.strip(_EDGES)
    return _NO_TEXT.fullmatch(bare) is not None or not any(character.isalpha() for character in bare)


def _without_marks(text: str) -> str:
    plain = text
    if plain.startswith("{\\rtf"):
        plain = _without_rtf(plain)
    elif "\\" in plain:
        plain = _HL7_BREAK.sub("\n", plain)
        plain = _HL7.sub(lambda match: _HL7_ESCAPES.get(match.group().upper(), ""), plain)
    if "<" in plain:
        plain = _without_tags(plain)
    if "&" in plain and _ENTITY.search(plain):
        plain = html.unescape(plain).replace("\xa0", " ")
        plain = _without_tags(plain) if "<" in plain else plain  # &lt;b&gt;
    plain = _HEADING_HEADER.sub(r"\1:", plain)
    plain = _MARKED_HEADER.sub(r"\n\1: ", plain)
    plain = _HEADING.sub("", plain)
    plain = _UNDERLINED.sub(r"\2", _BOLD.sub(r"\2", _STRUCK.sub("", plain)))
    if plain == text:
        return text
    lines = (re.sub(r"[ \t]{2,}", " ", line).strip() for line in plain.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _without_tags(text: str) -> str:
    text = _HIDDEN.sub(" ", text)
    text = _LABELLED.sub(lambda match: f"\n{match[1]}: " if re.fullmatch(HEADER, match[1], re.I) else match[0], text)
    text = _HEADER_TAG.sub(r"\n\1: ", text)
    text = _EMPHASISED_HEADER.sub(r"\n\2: ", text)
    return _TAG.sub("", _BREAK_TAG.sub("\n", text))


def _without_rtf(text: str) -> str:
    text = _RTF_BREAK.sub("\n", _RTF_GROUP.sub("", text.replace("\r", "").replace("\n", " ")))
    return _RTF_WORD.sub(lambda match: bytes.fromhex(match[1]).decode("cp1252", "replace") if match[1] else "", text)
