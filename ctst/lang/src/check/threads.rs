//! Many components are looked at by two threads.

use std::borrow::Cow;
use std::thread;

use foldhash::{HashMap, HashMapExt as _, HashSet, HashSetExt as _};

use crate::diagnostic::Report;

use super::resolve::{MOST_EXPANDED, Memo};
use super::{Checker, Uses};

/// So many are worth a second thread, which takes some time to start.
const WORTH_A_THREAD: usize = 1000;

impl<'a> Checker<'a, '_> {
    /// Looks at each of `all`, and stops when the report is full: what comes back is as long as what was looked at. `look`
    /// changes nothing but the report and what [`Uses`] notes, so that the order does not matter unless there is a finding.
    pub(super) fn each<J: Sync, T: Send>(
        &mut self,
        all: &[J],
        look: impl Fn(&mut Checker<'a, '_>, &J) -> Option<T> + Sync,
    ) -> Vec<Option<T>> {
        if all.len() >= WORTH_A_THREAD
            && !self.report.full()
            && let Some(seen) = self.each_in_halves(all, &look)
        {
            return seen;
        }
        let mut seen = Vec::with_capacity(all.len());
        for one in all {
            if self.report.full() {
                break;
            }
            seen.push(look(self, one));
        }
        seen
    }

    /// Looks at one half while another thread looks at the other one. `None`, and nothing has changed, if there is
    /// something to report: then which of several findings are kept and what they say depends on the order.
    fn each_in_halves<J: Sync, T: Send>(
        &mut self,
        all: &[J],
        look: &(impl Fn(&mut Checker<'a, '_>, &J) -> Option<T> + Sync),
    ) -> Option<Vec<Option<T>>> {
        let mut seen = Vec::new();
        seen.resize_with(all.len(), || None);
        let middle = all.len() / 2;
        let ((first, second), (seen_first, seen_second)) = (all.split_at(middle), seen.split_at_mut(middle));
        let (mut report, mut other_report) = (Report::default(), Report::default());
        let (mut checker, mut other) = (self.fork(&mut report), self.fork(&mut other_report));
        let quiet = thread::scope(|scope| {
            let other = thread::Builder::new().spawn_scoped(scope, || other.each_if_quiet(second, seen_second, look));
            let other = other.ok()?;
            let quiet = checker.each_if_quiet(first, seen_first, look);
            Some(other.join().ok()? && quiet)
        })?;
        let (mut uses, later) = (checker.uses, other.uses);
        uses.add(later);
        if !quiet || self.uses.expanded.saturating_add(uses.expanded) > MOST_EXPANDED {
            return None;
        }
        self.uses.add(uses);
        Some(seen)
    }

    /// Looks at each until there is something to report. Whether there was nothing comes back.
    fn each_if_quiet<J, T>(
        &mut self,
        all: &[J],
        seen: &mut [Option<T>],
        look: &impl Fn(&mut Checker<'a, '_>, &J) -> Option<T>,
    ) -> bool {
        for (one, place) in all.iter().zip(seen) {
            *place = look(self, one);
            if !self.report.is_empty() {
                return false;
            }
        }
        true
    }

    /// One that knows the same and has noted nothing yet. It reads no files: that there is no loader is a finding, and
    /// so they are read in order, and once.
    fn fork<'f>(&'f self, report: &'f mut Report) -> Checker<'a, 'f> {
        Checker {
            source: self.source,
            env: self.env,
            report,
            declared: Cow::Borrowed(&self.declared),
            files: self.files,
            stack: None,
            stores: Cow::Borrowed(&self.stores),
            loader: None,
            read: HashMap::new(),
            by_name: Cow::Borrowed(&self.by_name),
            aliases: Cow::Borrowed(&self.aliases),
            used_imports: HashSet::new(),
            params: self.params,
            params_by_name: Cow::Borrowed(&self.params_by_name),
            edges: Cow::Borrowed(&self.edges),
            connected: Cow::Borrowed(&self.connected),
            warned: HashSet::new(),
            memo: Memo::default(),
            uses: Uses::default(),
            current: None,
            partial: self.partial,
        }
    }
}
