"""What a request is made of: ids, payloads, results and decorated functions. Nothing here knows a database.

* `ids` validates what names a request.
* `payloads` makes the fingerprint of a payload from its `canonical` form; `numbers` writes the numbers in it, and `unfit` carries
  the place of a value that has none.
* `results` and `json_text` turn a result into the stored text, and back; `mapped` finds rows of the ORM, which no text restores.
* `functions` names a function in an error, without what it is bound to.
* `decorator` and `decorated` make a guarded function, `supplied` passes it what the guard supplies.
* `own_results` are results that the app encodes, `refusals` those that refuse; `planned_effects` are what a relay will fire.
* `signature`, `template`, `arguments`, `annotations` and `fields` read functions, calls and classes.
"""
