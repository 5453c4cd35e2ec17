"""The campaign builder: a form for the whole grammar of the campaign file.

The form is made from the grammar's own types (`grammar`), so that what the file can say the form can say; `texts` has the words for
each of its fields, `file` turns the form into the file and the file into the form. The file stays what counts: it is what is
planned, kept and audited.
"""
