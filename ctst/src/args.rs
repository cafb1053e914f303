//! The command line.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use containust_sdk::lang::model::Protocol;

/// Runs stacks of containers from one `.ctst` file, without a daemon and without root.
#[derive(Debug, Parser)]
#[command(
    name = "ctst",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Exit codes: 0, 125 for an error of ctst, 126 for a command that cannot be executed, 127 for one that is \
                  not there, else that of the container (128 and the signal where a signal ended it)."
)]
pub(crate) struct Args {
    /// The composition, or a bundle of one; otherwise stack.ctst, containust.ctst or the only .ctst file of the current folder, or the
    /// only bundle
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// The project of this folder instead of the current one; --file is looked for in it
    #[arg(short, long, value_name = "DIR")]
    pub(crate) project: Option<PathBuf>,

    /// Reach nothing beyond this host, which the kernel sees to: nothing is fetched, what is not here already is an error, and no
    /// network has a way out
    #[arg(long, global = true, env = "CONTAINUST_OFFLINE", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) offline: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The file that these two options mean, or the folder of which it is that of the usual name.
pub(crate) fn meant_file(project: Option<PathBuf>, file: Option<PathBuf>) -> Option<PathBuf> {
    match (project, file) {
        (Some(project), None) => Some(project),
        (Some(project), Some(file)) => Some(project.join(file)),
        (None, file) => file,
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check a composition and show all its errors
    Check(Check),
    /// Show what `run` would do; changes nothing
    Plan(Plan),
    /// Start a composition, or bring a running one up to date
    Run(Run),
    /// Start a composition in the background, and return when it is healthy: `run --detach --wait`, word for word
    Up(Up),
    /// Stop a composition and remove what is left of it: `stop`, then `rm`, and with the last of the folder its run state
    ///
    /// That is: containers with their writable layers, logs and records. Images stay, and so do volumes without --volumes.
    /// What would lose files that were written into a container with `readonly = false` is refused without
    /// --allow-destroy.
    Down(Down),
    /// List the project's containers, or where no project is, those of all projects that run
    Ps(Ps),
    /// Show which addresses of this host lead to which ports of components
    Port(Port),
    /// Show the processes in containers
    Top(Top),
    /// Show what happened to components: started, healthy, ended and the like
    ///
    /// The project's supervisor remembers the last thousand events since it was started. With the last container it is gone, and
    /// so are they.
    Events(Events),
    /// Show what containers use of memory, processors, processes and disks
    Stats(Stats),
    /// Show everything that is known of containers
    Inspect(Inspect),
    /// Run a command in a running container
    Exec(Exec),
    /// Copy files into or out of a container that runs
    ///
    /// Into a folder that is there, or under the new name. `-` is a tar stream, from standard input into a folder of the
    /// container or to standard output. Links stay links; inside, files belong to root, and here to the caller.
    Cp(Cp),
    /// Show what containers printed
    ///
    /// What they wrote to standard error goes to standard error. Where that is the same file as standard output, as on a
    /// terminal, everything stays in order.
    Logs(Logs),
    /// Freeze containers that have limits: they keep their memory and do nothing
    Pause(Pause),
    /// Let frozen containers go on
    Unpause(Pause),
    /// Wait until containers have ended, print their exit codes, and exit with the first that is not 0
    Wait(Wait),
    /// End containers that run and start them again as they are, in the order of their dependencies
    Restart(Stop),
    /// Stop containers, those that need others first
    Stop(Stop),
    /// Remove what stopped containers left: writable layers, logs, records
    Rm(Rm),
    /// Import or build all images of a composition
    Build(Build),
    /// Write a composition with its images and all the files that it is made from into one file, for another host
    ///
    /// There `ctst run FILE.ctstar` needs nothing else, and no network. Folders of this host that the composition mounts, and secrets,
    /// are not in it. It is a plain tar, and an OCI layout, too; its digest, which is printed, is that of `sha256sum`. The same
    /// composition with the same images gives the same file.
    Bundle(Bundle),
    /// Pull images from their registries
    ///
    /// What containust.lock or a digest in the file says is pulled, whatever the tag means by now. What nothing says it of is what the
    /// tag means now, and is locked to that.
    Pull(Pull),
    /// Push an image of the store to a registry
    ///
    /// Its layers are packed anew and compressed by gzip, so that its digest there, which is printed, is another than what was imported.
    /// What the registry has already is not sent.
    Push(Push),
    /// Store as whom a registry is asked, once it has let that in
    ///
    /// It is kept where docker, podman and skopeo look, too: by the credential helper that ~/.docker/config.json names, or in
    /// ~/.config/containers/auth.json, where everybody who may read that file can read it.
    Login(Login),
    /// Remove what is stored for a registry
    Logout(Logout),
    /// Fetch what a composition imports from the network, and lock it and its images of registries to what they are now
    ///
    /// The digests of imports without SHA256, and of images without @sha256:…, go into containust.lock beside the file, which belongs
    /// under version control. Images are not pulled.
    Lock(Lock),
    /// List imported images, and look after them
    Images(Images),
    /// List or remove named volumes
    Volumes(Volumes),
    /// Bring compositions into the one layout, and name those that were changed
    Fmt(Fmt),
    /// Explain a code that `check` gives
    Explain(Explain),
    /// Show the JSON Schema of a checked composition
    Schema(Schema),
    /// Print a script for a shell that completes commands, options and names
    Completions(Completions),
    /// Examine what this host offers and say how to get what is missing
    Doctor(Doctor),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// What a caller adds to a composition.
#[derive(Debug, ClapArgs)]
pub(crate) struct Inputs {
    /// Give a parameter of the file (PARAM) a value; of two for one name the last counts
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    pub(crate) set: Vec<(String, String)>,
    /// Give parameters values from a file of NAME=VALUE lines; --set and later files come first
    #[arg(long, value_name = "FILE")]
    pub(crate) params: Vec<PathBuf>,
    /// Deploy the components of this profile, too
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Vec<String>,
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a name, = and a value are expected, such as port=8080")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn port_of_one_kind(text: &str) -> Result<(u16, Option<Protocol>), String> {
    let (port, protocol) = match text.split_once('/') {
        None => (text, None),
        Some((port, "tcp")) => (port, Some(Protocol::Tcp)),
        Some((port, "udp")) => (port, Some(Protocol::Udp)),
        Some(_) => return Err("tcp or udp is expected behind /, such as 53/udp".to_owned()),
    };
    Ok((port.parse().map_err(|_| "a number from 0 to 65535 is expected, such as 80 or 53/udp")?, protocol))
}

fn label(text: &str) -> Result<(String, Option<String>), String> {
    let label = text.strip_prefix("label=").filter(|label| !label.is_empty());
    let label = label.ok_or("label= and a name are expected, such as label=tier=front")?;
    Ok(label
        .split_once('=')
        .map_or((label.to_owned(), None), |(name, value)| (name.to_owned(), Some(value.to_owned()))))
}

/// What a bundle has to be.
#[derive(Debug, Default, ClapArgs)]
pub(crate) struct Pin {
    /// Go on only if the bundle has this SHA-256, which `ctst bundle` and `sha256sum` print
    #[arg(long, value_name = "DIGEST")]
    pub(crate) sha256: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Bundle {
    /// The composition
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) inputs: Inputs,
    /// Where to; what is there is replaced
    #[arg(short, long, value_name = "FILE.ctstar")]
    pub(crate) out: PathBuf,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Check {
    /// The composition
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) inputs: Inputs,
    #[command(flatten)]
    pub(crate) pin: Pin,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Plan {
    /// The composition, and the components to plan with what they need (all if none is named). A word without `.` and `/`
    /// is a component
    #[arg(value_name = "FILE|COMPONENT")]
    pub(crate) targets: Vec<String>,
    #[command(flatten)]
    pub(crate) inputs: Inputs,
    #[command(flatten)]
    pub(crate) pin: Pin,
    /// Show what stays as it is, too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Keep the plan in this file, for `ctst run FILE.json`; it holds the environment of every component, but no secrets
    #[arg(short, long, value_name = "FILE.json")]
    pub(crate) out: Option<PathBuf>,
    /// Exit with 0 if there is nothing to do, 1 on an error, 2 if there is something to do
    #[arg(long)]
    pub(crate) detailed_exitcode: bool,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Run {
    /// The composition, and the components to start with what they need (all if none is named). A word without `.` and
    /// `/` is a component. A file that ends in .json is a plan of `ctst plan -o`, carried out as it stands
    #[arg(value_name = "FILE|COMPONENT")]
    pub(crate) targets: Vec<String>,
    #[command(flatten)]
    pub(crate) inputs: Inputs,
    #[command(flatten)]
    pub(crate) pin: Pin,
    /// Return as soon as everything is started
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Return as soon as everything is healthy and every JOB has completed; implies --detach
    #[arg(long)]
    pub(crate) wait: bool,
    /// Give up waiting after this many seconds; what was started goes on
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    pub(crate) wait_timeout: Option<u64>,
    /// Agree to what the composition is given of the host: writable host paths, ports that others can reach, ways out, capabilities, a
    /// looser filter, and commands that secrets come from
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Replace or remove containers although what was written into them is lost
    #[arg(long)]
    pub(crate) allow_destroy: bool,
    /// In the foreground: stop everything once a component has ended with another code than 0 and is not started again, or could not be
    /// started, and exit with its code
    #[arg(long, conflicts_with_all = ["detach", "wait"])]
    pub(crate) abort_on_failure: bool,
    /// In the foreground: stop everything once this component has ended, and exit with its code
    #[arg(long, value_name = "COMPONENT", conflicts_with_all = ["detach", "wait"])]
    pub(crate) exit_code_from: Option<String>,
    /// In the foreground: show what is printed without the components' names before the lines
    #[arg(long, conflicts_with_all = ["detach", "wait"])]
    pub(crate) no_log_prefix: bool,
    /// In the foreground: show when each line was printed
    #[arg(long, conflicts_with_all = ["detach", "wait"])]
    pub(crate) timestamps: bool,
}

impl Run {
    /// The plan that is named instead of a composition.
    ///
    /// # Errors
    /// What cannot be said beside it.
    pub(crate) fn saved(&self) -> Result<Option<PathBuf>, String> {
        let is_plan = |target: &&String| target.ends_with(".json");
        let Some(plan) = self.targets.iter().find(is_plan) else { return Ok(None) };
        let Inputs { set, params, profile, .. } = &self.inputs;
        let is_alone = set.is_empty() && params.is_empty() && profile.is_empty() && self.pin.sha256.is_none();
        if self.targets.len() > 1 || !is_alone {
            return Err(format!("run {plan}: a plan is carried out as a whole, with the values it was made with"));
        }
        Ok(Some(plan.into()))
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Up {
    /// As of `run`
    #[arg(value_name = "FILE|COMPONENT")]
    pub(crate) targets: Vec<String>,
    #[command(flatten)]
    pub(crate) inputs: Inputs,
    #[command(flatten)]
    pub(crate) pin: Pin,
    /// Nothing else than without: `up` returns when everything is healthy (in the foreground: `ctst run`)
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Nothing else than without
    #[arg(long)]
    pub(crate) wait: bool,
    /// Give up waiting after this many seconds; what was started goes on
    #[arg(long, value_name = "SECONDS")]
    pub(crate) wait_timeout: Option<u64>,
    /// As of `run`
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// As of `run`
    #[arg(long)]
    pub(crate) allow_destroy: bool,
}

impl From<Up> for Run {
    fn from(up: Up) -> Self {
        let Up { targets, inputs, pin, wait_timeout, yes, allow_destroy, detach: _, wait: _ } = up;
        Self {
            targets,
            inputs,
            pin,
            detach: true,
            wait: true,
            wait_timeout,
            yes,
            allow_destroy,
            abort_on_failure: false,
            exit_code_from: None,
            no_log_prefix: false,
            timestamps: false,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Down {
    #[command(flatten)]
    pub(crate) inputs: Inputs,
    /// Remove the named volumes of the composition, too, with all that is in them
    #[arg(short, long)]
    pub(crate) volumes: bool,
    /// Remove containers although what was written into them is lost
    #[arg(long)]
    pub(crate) allow_destroy: bool,
    /// As of `stop`
    #[arg(short, long, value_name = "SECONDS")]
    pub(crate) time: Option<u64>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Port {
    /// Only of this one
    #[arg(value_name = "COMPONENT")]
    pub(crate) component: Option<String>,
    /// Only of this port of it, such as 53 or 53/udp; then nothing but the addresses is shown, and none is an error
    #[arg(value_name = "PORT", value_parser = port_of_one_kind)]
    pub(crate) port: Option<(u16, Option<Protocol>)>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Top {
    /// Only these (all if none is named)
    #[arg(value_name = "COMPONENT")]
    pub(crate) components: Vec<String>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Events {
    /// Only of these (all if none is named)
    #[arg(value_name = "COMPONENT")]
    pub(crate) components: Vec<String>,
    /// Go on until the project ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only what happened within this time (10m, 1h30m) or since a moment (2026-11-23T16:33:29Z)
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Form of the output; of JSON one object a line
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// The file and the components among these positional arguments; `file` is that of `-f`.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn split(targets: &[String], file: Option<PathBuf>) -> Result<(Option<PathBuf>, Vec<String>), String> {
    let (paths, components): (Vec<_>, Vec<_>) = targets.iter().cloned().partition(|target| target.contains(['.', '/']));
    let mut files = file.into_iter().chain(paths.into_iter().map(PathBuf::from));
    match (files.next(), files.next()) {
        (Some(one), Some(two)) => {
            Err(format!("choose a composition: both {} and {} are named", one.display(), two.display()))
        }
        (file, _) => Ok((file, components)),
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Ps {
    /// Show those that do not run, too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Those of all your projects that run, wherever their folders are
    #[arg(short = 'A', long)]
    pub(crate) all_projects: bool,
    /// Only those with this label; given more than once: with all of them
    #[arg(long, value_name = "label=NAME[=VALUE]", value_parser = label)]
    pub(crate) filter: Vec<(String, Option<String>)>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Stats {
    /// Only these (all if none is named)
    #[arg(value_name = "COMPONENT")]
    pub(crate) components: Vec<String>,
    /// Go on, once a second, until they end
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Pause {
    /// Only these (all of the file that run if none is named)
    #[arg(value_name = "COMPONENT")]
    pub(crate) components: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Exec {
    /// Pass standard input on
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal of its own
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set a variable; without a value: to that of the caller
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Run as this user of the container: name, uid, name:group or uid:gid
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Run in this folder of the container
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// The component, the command and its arguments
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, value_names = ["COMPONENT", "COMMAND"])]
    pub(crate) words: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Logs {
    /// Only these (all if none is named)
    #[arg(value_name = "COMPONENT")]
    pub(crate) components: Vec<String>,
    /// Go on until they end
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last lines of each
    #[arg(short = 'n', long, value_name = "LINES")]
    pub(crate) tail: Option<usize>,
    /// Only what was printed within this time (10m, 1h30m) or since a moment (2026-11-23T16:33:29Z)
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Show when each line was printed
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    /// Show the lines without the components' names before them
    #[arg(long)]
    pub(crate) no_log_prefix: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Cp {
    /// What to copy: a path, COMPONENT:PATH or -
    #[arg(value_name = "SOURCE")]
    pub(crate) source: String,
    /// Where to: COMPONENT:PATH, a path or -
    #[arg(value_name = "TARGET")]
    pub(crate) target: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Inspect {
    /// Only these (all if none is named)
    #[arg(value_name = "COMPONENT")]
    pub(crate) components: Vec<String>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Wait {
    /// Which
    #[arg(required = true, value_name = "COMPONENT")]
    pub(crate) components: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Completions {
    /// The shell: bash, zsh, fish
    #[arg(value_parser = ["bash", "zsh", "fish"])]
    pub(crate) shell: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Rm {
    /// Only these, which must not run (all of the file that do not run if none is named)
    #[arg(value_name = "COMPONENT")]
    pub(crate) components: Vec<String>,
    /// Also those that files were written into; else refused (S0602)
    #[arg(long)]
    pub(crate) allow_destroy: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Stop {
    /// Only these (all of the file if none is named)
    #[arg(value_name = "COMPONENT")]
    pub(crate) components: Vec<String>,
    /// Kill what has not ended after this many seconds, whatever its `stop { grace }` says (10 if it says nothing)
    #[arg(short, long, value_name = "SECONDS")]
    pub(crate) time: Option<u64>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Build {
    /// The composition
    pub(crate) file: Option<PathBuf>,
    /// Do every step of builds again, whatever earlier builds have made
    #[arg(long)]
    pub(crate) no_cache: bool,
    #[command(flatten)]
    pub(crate) inputs: Inputs,
}

#[derive(Debug, ClapArgs)]
#[command(after_long_help = REGISTRIES)]
pub(crate) struct Pull {
    /// Components whose images are pulled, or images such as oci://registry/name:tag; otherwise all of the composition's
    #[arg(value_name = "COMPONENT|IMAGE")]
    pub(crate) what: Vec<String>,
    /// Pull what the tags mean now, and lock that
    #[arg(long)]
    pub(crate) update: bool,
    #[command(flatten)]
    pub(crate) inputs: Inputs,
}

#[derive(Debug, ClapArgs)]
#[command(after_long_help = REGISTRIES)]
pub(crate) struct Push {
    /// A name, a reference as `ctst images` shows it, or the first digits of a digest
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Where to, as oci://registry/name:tag
    #[arg(value_name = "TARGET")]
    pub(crate) target: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Login {
    /// Host, with a port if need be; docker.io for docker's
    #[arg(value_name = "REGISTRY")]
    pub(crate) registry: String,
    /// The name; asked for otherwise
    #[arg(short, long, value_name = "NAME")]
    pub(crate) username: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    pub(crate) password_stdin: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Logout {
    /// Host, with a port if need be; docker.io for docker's
    #[arg(value_name = "REGISTRY")]
    pub(crate) registry: String,
}

/// What stands behind the help of commands that ask registries.
const REGISTRIES: &str = "\
registries.toml, in $XDG_CONFIG_HOME/containust (~/.config/containust) or /etc/containust, says what is otherwise than usual:

  [registry.\"docker.io\"]
  mirrors = [\"mirror.example:5000/hub\"]    # asked before it, in this order

  [registry.\"registry.example\"]
  ca = \"/etc/ssl/our-own.pem\"             # trusted there beside the system's

Registries are asked by TLS, and those on localhost or 127.0.0.0/8 without it, unless they have a `ca`. As whom, is in the files of podman,
skopeo and docker (auth.json, config.json), or their credential helpers know it.";

#[derive(Debug, ClapArgs)]
pub(crate) struct Lock {
    /// The composition
    pub(crate) file: Option<PathBuf>,
    /// Lock what has an entry anew, too
    #[arg(long)]
    pub(crate) update: bool,
}

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Images {
    #[command(subcommand)]
    pub(crate) command: Option<ImagesCommand>,
    #[command(flatten)]
    pub(crate) list: List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImagesCommand {
    /// List imported images, as `ctst images` alone does
    Ls(List),
    /// Show what an image says of itself, and of one that was stripped (`distroless`) what was kept and what was dropped
    Inspect(InspectImage),
    /// Import a folder or an archive under a name, for `image = "image://NAME"`
    ///
    /// An archive is a root file system, what `docker save` writes, or an OCI layout; plain or compressed by gzip, zstd or xz.
    Import(Import),
    /// Write an image as an archive: an OCI layout that `docker load` takes, too
    Export(Export),
    /// Read images and compare them with what was imported; exits with 1 if one differs
    Verify(Verify),
    /// Show what images take of the disk, and what of it they share
    Df(List),
    /// Remove images that no container was made of
    Rm(RmImages),
    /// Remove images that neither a container was made of nor a file of the folder names
    Prune(Prune),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct List {
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct InspectImage {
    /// A name, a reference as `ctst images` shows it, or the first digits of a digest
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Import {
    /// The folder or archive
    #[arg(value_name = "FOLDER|ARCHIVE")]
    pub(crate) path: PathBuf,
    /// Its name; an archive of `docker save` brings its own
    #[arg(value_name = "NAME[:TAG]")]
    pub(crate) name: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Export {
    /// A name, a reference as `ctst images` shows it, or the first digits of a digest
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Where to; `-` is the standard output
    #[arg(value_name = "ARCHIVE")]
    pub(crate) archive: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Verify {
    /// Names, references as `ctst images` shows them, or first digits of digests (all images if none is given)
    #[arg(value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// Import again what differs, where its source still gives the same; not while a container of it runs
    #[arg(long)]
    pub(crate) repair: bool,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RmImages {
    /// Names, references as `ctst images` shows them, or first digits of digests
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Prune {
    /// Also those that were imported under a name
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Volumes {
    #[command(subcommand)]
    pub(crate) action: Option<VolumesAction>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolumesAction {
    /// List them and who uses them, which is what happens without a word, too
    Ls {
        /// Form of the output
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Remove volumes with everything in them; refused while there is a container that has one
    Rm {
        /// The volumes
        #[arg(required = true, value_name = "VOLUME")]
        names: Vec<String>,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Fmt {
    /// The compositions; otherwise that of the current folder
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Change nothing, name those that would be changed, and exit with 1 if there are any
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Explain {
    /// The code, such as E0101 (lists all if none is named)
    pub(crate) code: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Schema {
    /// Show the language's grammar, its properties and examples instead, in a form for a language model's prompt
    #[arg(long)]
    pub(crate) grammar: bool,
    /// Show the schema of `plan --format json` instead
    #[arg(long, conflicts_with = "grammar")]
    pub(crate) plan: bool,
}

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Doctor {
    #[command(subcommand)]
    pub(crate) command: Option<DoctorCommand>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DoctorCommand {
    /// Try the networks of the project that runs: names, the way out and published ports
    ///
    /// From inside each container, by TCP sockets in its network namespace, which its pid 1 makes: nothing of its image is run. Names are
    /// those of components, asked of the project's name server. The way out is tried by asking this host's resolver for the name
    /// servers of the root. Of a published port a connection is made and closed, inside and on this host. What a program's own
    /// library does before it asks, and UDP, is not tried.
    Net {
        /// Form of the output
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(words: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once(&"ctst").chain(words))
    }

    fn split_of(words: &[&str]) -> Result<(Option<PathBuf>, Vec<String>), String> {
        let args = parse(words).unwrap();
        let targets = match args.command {
            Command::Run(run) => run.targets,
            Command::Plan(plan) => plan.targets,
            _ => panic!("{words:?} is neither run nor plan"),
        };
        split(&targets, args.file)
    }

    fn exec(words: &[&str]) -> Exec {
        let Command::Exec(exec) = parse(words).unwrap().command else { panic!("{words:?} is not exec") };
        exec
    }

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn run_and_plan_tell_files_from_components() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(split_of(&["run"]), Ok((None, vec![])));
        assert_eq!(split_of(&["run", "a.ctst"]), Ok((Some("a.ctst".into()), vec![])));
        assert_eq!(split_of(&["run", "./a", "db", "web"]), Ok((Some("./a".into()), names(&["db", "web"]))));
        assert_eq!(split_of(&["run", "web", "-d"]), Ok((None, names(&["web"]))));
        assert_eq!(split_of(&["-f", "a.ctst", "run", "web"]), Ok((Some("a.ctst".into()), names(&["web"]))));
        assert_eq!(split_of(&["plan", "a.ctst", "db", "-a"]), Ok((Some("a.ctst".into()), names(&["db"]))));
        assert!(split_of(&["run", "a.ctst", "b.ctst"]).is_err());
        assert!(split_of(&["plan", "a.ctst", "b.ctst"]).is_err());
        assert!(split_of(&["-f", "a.ctst", "run", "b.ctst"]).is_err());
    }

    #[test]
    fn the_words_of_exec_are_verbatim_from_the_component_on() {
        let e =
            exec(&["exec", "-it", "-e", "A=1", "--env=B", "-u", "app", "-w", "/srv", "web", "ls", "-la", "--", "-t"]);
        assert!(e.interactive && e.tty);
        assert_eq!(e.env, ["A=1", "B"]);
        assert_eq!((e.user.as_deref(), e.workdir.as_deref()), (Some("app"), Some("/srv")));
        assert_eq!(e.words, ["web", "ls", "-la", "--", "-t"]);
        let e = exec(&["exec", "web", "-i", "--help"]);
        assert!(!e.interactive);
        assert_eq!(e.words, ["web", "-i", "--help"]);
        assert!(parse(&["exec", "web"]).is_err());
        assert!(parse(&["exec", "--unknown", "web", "ls"]).is_err());
    }

    #[test]
    fn f_is_the_file_before_the_command_and_follow_after_logs() {
        let args = parse(&["-f", "x.ctst", "logs", "-f", "web", "-n", "5", "--since", "10m"]).unwrap();
        assert_eq!(args.file, Some("x.ctst".into()));
        let Command::Logs(logs) = args.command else { panic!("not logs") };
        assert!(logs.follow);
        assert_eq!((logs.tail, logs.since.as_deref()), (Some(5), Some("10m")));
        assert_eq!(logs.components, ["web"]);
    }

    #[test]
    fn refuses_what_has_no_meaning() {
        for words in [
            &["run", "--wait-timeout", "5"][..],
            &["run", "--set", "NAME"],
            &["stop", "-t", "-1"],
            &["logs", "--tail", "all"],
            &["ps", "--format", "yaml"],
            &["ps", "--filter", "name=web"],
            &["unknown"],
            &["doctor", "extra"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    /// Every flag with its short form: a change of the interface is a change of this list.
    #[test]
    fn the_interface() {
        let mut found = String::new();
        let command = Args::command();
        let commands = command.get_subcommands().flat_map(|command| {
            let deeper = command.get_subcommands().map(move |deeper| (Some(command), deeper));
            std::iter::once((None, command)).chain(deeper)
        });
        for (above, command) in std::iter::once((None, &command)).chain(commands) {
            if let Some(above) = above {
                found += &format!("{} ", above.get_name());
            }
            found += command.get_name();
            for arg in command.get_arguments() {
                match (arg.get_short(), arg.get_long()) {
                    (Some(short), Some(long)) => found += &format!(" -{short}/--{long}"),
                    (None, Some(long)) => found += &format!(" --{long}"),
                    _ => found += &format!(" {}", arg.get_value_names().unwrap_or_default().join(" ")),
                }
            }
            found += "\n";
            let about = command.get_about().unwrap_or_default().to_string();
            assert!(!about.is_empty() && command.get_arguments().all(|a| a.get_help().is_some()), "{found}");
        }
        assert_eq!(
            found,
            "ctst -f/--file -p/--project --offline\n\
             check FILE --set --params --profile --sha256 --format\n\
             plan FILE|COMPONENT --set --params --profile --sha256 -a/--all -o/--out --detailed-exitcode --format\n\
             run FILE|COMPONENT --set --params --profile --sha256 -d/--detach --wait --wait-timeout -y/--yes --allow-destroy --abort-on-failure --exit-code-from --no-log-prefix --timestamps\n\
             up FILE|COMPONENT --set --params --profile --sha256 -d/--detach --wait --wait-timeout -y/--yes --allow-destroy\n\
             down --set --params --profile -v/--volumes --allow-destroy -t/--time\n\
             ps -a/--all -A/--all-projects --filter --format\n\
             port COMPONENT PORT --format\n\
             top COMPONENT --format\n\
             events COMPONENT -f/--follow --since --format\n\
             stats COMPONENT -w/--watch --format\n\
             inspect COMPONENT --format\n\
             exec -i/--interactive -t/--tty -e/--env -u/--user -w/--workdir COMPONENT COMMAND\n\
             cp SOURCE TARGET\n\
             logs COMPONENT -f/--follow -n/--tail --since -t/--timestamps --no-log-prefix\n\
             pause COMPONENT\n\
             unpause COMPONENT\n\
             wait COMPONENT\n\
             restart COMPONENT -t/--time\n\
             stop COMPONENT -t/--time\n\
             rm COMPONENT --allow-destroy\n\
             build FILE --no-cache --set --params --profile\n\
             bundle FILE --set --params --profile -o/--out --format\n\
             pull COMPONENT|IMAGE --update --set --params --profile\n\
             push IMAGE TARGET\n\
             login REGISTRY -u/--username --password-stdin\n\
             logout REGISTRY\n\
             lock FILE --update\n\
             images --format\n\
             images ls --format\n\
             images inspect IMAGE --format\n\
             images import FOLDER|ARCHIVE NAME[:TAG]\n\
             images export IMAGE ARCHIVE\n\
             images verify IMAGE --repair --format\n\
             images df --format\n\
             images rm IMAGE\n\
             images prune -a/--all --format\n\
             volumes --format\n\
             volumes ls --format\n\
             volumes rm VOLUME\n\
             fmt FILE --check\n\
             explain CODE\n\
             schema --grammar --plan\n\
             completions SHELL\n\
             doctor --format\n\
             doctor net --format\n"
        );
    }
}
