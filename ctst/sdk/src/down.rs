//! Taking a composition down: stopped, and with all that it left removed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use containust_lang::model::Composition;

use crate::error::{Error, Result};
use crate::event::Event;
use crate::ipc::Request;
use crate::ipc::client::Client;
use crate::plan::layer;
use crate::project::Project;
use crate::record::{self, Stored};
use crate::volumes;

/// What goes with a composition that is taken down.
#[derive(Debug, Clone, Default)]
pub struct Down {
    /// From asking to SIGKILL, instead of what each component says.
    pub grace: Option<Duration>,
    /// Whether containers may go although files were written into them. Without, [`Project::down`] refuses with
    /// [`Error::DataLoss`]; nothing is stopped then, unless it was written meanwhile.
    pub allow_destroy: bool,
    /// The composition whose named volumes go, too, with all that is in them. Those stay that containers of other files have, or
    /// components that another file declares as well, and all where it cannot be read who has them.
    pub volumes: Option<Composition>,
}

/// What became of the volumes of a composition that was taken down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Downed {
    /// Volumes that are gone.
    pub removed: Vec<String>,
    /// Volumes that stay, each with the components that have it.
    pub kept: Vec<(String, Vec<String>)>,
}

impl Project {
    /// Stops the components of the project's file, dependents first, and removes what is left of them: writable layers, logs,
    /// records. With the last of the project go its log and the places of its supervisor. Images stay.
    ///
    /// # Errors
    /// [`Error::DataLoss`], and [`Error::Reported`] for what could not be removed.
    pub fn down(&self, options: &Down, on_event: &mut dyn FnMut(&Event)) -> Result<Downed> {
        let mut own = BTreeSet::new();
        let mut lost = Vec::new();
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        let (mut others, mut unknown) = (BTreeMap::<String, Vec<String>>::new(), Vec::new());
        let file = self.file_name();
        for name in record::list(&self.containers_dir())? {
            let stored = record::read(&self.container_dir(&name), self.identity())?;
            match &stored {
                Some(Stored::Record(record)) if !record.is_of(&file) => continue,
                Some(Stored::Record(record)) if record.is_of_others(&file) => {
                    for volume in record.spec.volume_names() {
                        others.entry(volume.to_owned()).or_default().push(name.clone());
                    }
                }
                Some(Stored::Record(record)) => wanted.extend(record.spec.volume_names().map(str::to_owned)),
                _ => unknown.push(name.clone()),
            }
            if !options.allow_destroy && layer::loses(self, &name)? {
                lost.push(name.clone());
            }
            own.insert(name);
        }
        if !lost.is_empty() {
            return Err(Error::DataLoss { components: lost });
        }
        if let Some(mut client) = Client::connect(self)? {
            client.stop(&[], options.grace, on_event)?;
        }
        if !own.is_empty() {
            let request = Request::Remove { names: Vec::new(), file, destroy: options.allow_destroy };
            Client::remove_by(self, &request, on_event)?;
        }
        let mut done = Downed::default();
        if let Some(composition) = &options.volumes {
            wanted.extend(composition.volumes.iter().map(|volume| volume.name.clone()));
            let (there, mut users) = (volumes::names(self)?, volumes::users(self)?);
            for name in there.into_iter().filter(|name| wanted.contains(name)) {
                let by = [users.remove(&name), others.remove(&name), Some(unknown.clone())].into_iter().flatten();
                match by.flatten().collect::<BTreeSet<_>>() {
                    by if by.is_empty() => done.removed.push(name),
                    by => done.kept.push((name, by.into_iter().collect())),
                }
            }
            if !done.removed.is_empty() {
                Client::remove_volumes(self, &done.removed)?;
            }
        }
        self.clear_away()?;
        Ok(done)
    }
}
