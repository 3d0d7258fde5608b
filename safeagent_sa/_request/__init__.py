"""What is asked: ids, payloads, results and the functions that are decorated. Nothing here knows a database.

* `ids` validates what names a request; `payloads` makes the fingerprint of its arguments.
* `results` and `json_text` turn a result into the stored text, and back.
* `signature`, `template`, `arguments` and `annotations` read functions and calls.
"""
