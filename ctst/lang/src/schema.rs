//! What tools and language models need to know of the language.

/// The grammar in EBNF, the properties, and one page of examples: small enough for a prompt.
#[must_use]
pub fn grammar() -> &'static str {
    include_str!("grammar.txt")
}

/// A JSON Schema (draft 2020-12) of [`crate::model::Composition`] as it is serialised.
#[must_use]
pub fn model_schema() -> &'static str {
    include_str!("schema.json")
}
