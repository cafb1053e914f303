//! `ctst schema`

use containust_sdk::lang::{grammar, model_schema};

use crate::args::Schema;
use crate::failure::Outcome;
use crate::output;

pub(crate) fn run(args: &Schema) -> Outcome {
    output::print(if args.grammar { grammar() } else { model_schema() })?;
    Ok(0)
}
