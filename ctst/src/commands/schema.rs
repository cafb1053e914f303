//! `ctst schema`

use containust_sdk::lang::{grammar, model_schema};
use containust_sdk::plan_schema;

use crate::args::Schema;
use crate::failure::Outcome;
use crate::output;

pub(crate) fn run(args: &Schema) -> Outcome {
    output::print(match args {
        Schema { grammar: true, .. } => grammar(),
        Schema { plan: true, .. } => plan_schema(),
        _ => model_schema(),
    })?;
    Ok(0)
}
