//! `ctst explain`

use containust_sdk::codes;
use containust_sdk::lang::{CODES, explain};

use crate::args::Explain;
use crate::failure::{Failure, Outcome};
use crate::output::{self, BOLD, Cell, table};

pub(crate) fn run(args: &Explain) -> Outcome {
    let Some(code) = &args.code else {
        let all = CODES.iter().map(|code| (code.as_str(), code.title())).chain(codes::titles());
        let rows: Vec<[Cell; 2]> = all.map(|(code, title)| [Cell(code.to_owned(), BOLD), title.into()]).collect();
        output::print(&table(["CODE", "MEANING"], &rows))?;
        return Ok(0);
    };
    let page = explain(code).or_else(|| codes::explain(code)).ok_or_else(|| {
        Failure::new(format!("explain {code}: there is no page on it"), "list those there are: ctst explain".to_owned())
    })?;
    output::print(&page)?;
    Ok(0)
}
