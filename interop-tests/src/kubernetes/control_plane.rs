//! The control plane: an etcd of its own, API server, controller manager, scheduler, and `kubectl` to talk to them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::daemon::etcd::Etcd;
use crate::eventually::eventually;
use crate::lab::Lab;
use crate::netns::{Namespace, printed, run};
use crate::process::Process;
use crate::programs::Programs;

/// Its name in the lab.
const MEMBER: &str = "control";
/// How long the API server may take: it makes its certificates and its first objects.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// What everybody says who may do everything.
const TOKEN: &str = "lab";

/// A control plane that runs.
#[derive(Debug)]
pub struct ControlPlane {
    programs: Programs,
    namespace: Namespace,
    folder: PathBuf,
    address: IpAddr,
    #[expect(dead_code, reason = "kept for its process")]
    etcd: Etcd,
}

impl ControlPlane {
    /// Starts everything in a namespace that has the address; returns when the API server is ready.
    ///
    /// # Errors
    /// When a program does not start; with the end of its log.
    pub fn start(
        lab: &Lab,
        programs: &Programs,
        namespace: &Namespace,
        address: IpAddr,
    ) -> anyhow::Result<Self> {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let control = Self {
            programs: programs.clone(),
            namespace: namespace.clone(),
            folder: lab.folder(MEMBER)?,
            address,
            etcd: Etcd::start_for(lab, MEMBER, namespace, loopback)?,
        };
        let key = control.folder.join("service-account.key");
        run(Command::new("openssl")
            .args(["genrsa", "-out"])
            .arg(&key)
            .arg("2048"))?;
        std::fs::write(
            control.folder.join("kubeconfig"),
            control.kubeconfig().to_string(),
        )?;
        let mut api_server = control.start_api_server(lab)?;
        eventually("the API server is ready", READY_WITHIN, || {
            api_server.check_alive()?;
            control.kubectl(&["get", "--raw", "/readyz"])
        })?;
        control.start_controllers(lab)?;
        Ok(control)
    }

    /// The credentials that everybody uses, kubelets too.
    #[must_use]
    pub fn kubeconfig(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "lab",
                "cluster": { "server": format!("https://{}:6443", self.address), "insecure-skip-tls-verify": true },
            }],
            "users": [{ "name": "lab", "user": { "token": TOKEN } }],
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "lab" } }],
            "current-context": "lab",
        })
    }

    /// Runs `kubectl` and returns what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn kubectl(&self, words: &[&str]) -> anyhow::Result<String> {
        self.namespace.run(self.command().args(words))
    }

    /// What `kubectl get … -o json` prints.
    ///
    /// # Errors
    /// When it fails.
    pub fn get(&self, words: &[&str]) -> anyhow::Result<Value> {
        let text = self
            .namespace
            .run(self.command().arg("get").args(words).args(["-o", "json"]))?;
        serde_json::from_str(&text).with_context(|| format!("kubectl get {words:?} printed {text:?}"))
    }

    /// Makes or changes objects.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn apply(&self, objects: &Value) -> anyhow::Result<()> {
        let mut command = self.command();
        command
            .args(["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.namespace.spawn(&mut command)?;
        let mut stdin = child.stdin.take().context("no pipe to kubectl")?;
        std::io::Write::write_all(&mut stdin, objects.to_string().as_bytes())?;
        drop(stdin);
        printed(&command, &child.wait_with_output()?).map(drop)
    }

    /// Commands that a person can type to look inside.
    #[must_use]
    pub fn look_inside(&self) -> String {
        let words: Vec<_> = [self.command().get_program().to_owned()]
            .into_iter()
            .chain(self.command().get_args().map(ToOwned::to_owned))
            .collect();
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        format!(
            "ip netns exec {} {} get pods -A -o wide",
            self.namespace.name(),
            words.join(" ")
        )
    }

    fn command(&self) -> Command {
        let mut command = self.programs.command("kubectl");
        command.arg("--kubeconfig").arg(self.folder.join("kubeconfig"));
        // Where it would keep a cache of the API otherwise.
        command.env("HOME", &self.folder);
        command
    }

    fn start_api_server(&self, lab: &Lab) -> anyhow::Result<Process> {
        let tokens = self.folder.join("tokens.csv");
        std::fs::write(&tokens, format!("{TOKEN},lab,lab,\"system:masters\"\n"))?;
        let key = self.folder.join("service-account.key");
        let key = key.to_str().context("the lab's folder is not UTF-8")?;
        let address = self.address.to_string();
        let flags = [
            ("etcd-servers", "http://127.0.0.1:2379"),
            ("advertise-address", &address),
            ("bind-address", "0.0.0.0"),
            ("service-account-issuer", "https://kubernetes.default.svc"),
            ("service-account-signing-key-file", key),
            ("service-account-key-file", key),
            (
                "token-auth-file",
                tokens.to_str().context("the lab's folder is not UTF-8")?,
            ),
            ("authorization-mode", "AlwaysAllow"),
            (
                "cert-dir",
                self.folder.to_str().context("the lab's folder is not UTF-8")?,
            ),
            ("service-cluster-ip-range", "10.96.0.0/16"),
            ("disable-admission-plugins", "ServiceAccount"),
            ("allow-privileged", "true"),
            ("kubelet-preferred-address-types", "InternalIP"),
        ];
        self.start_program(lab, "kube-apiserver", &flags)
    }

    fn start_controllers(&self, lab: &Lab) -> anyhow::Result<()> {
        let folder = self.folder.to_str().context("the lab's folder is not UTF-8")?;
        let kubeconfig = format!("{folder}/kubeconfig");
        let key = format!("{folder}/service-account.key");
        let common = [
            ("kubeconfig", kubeconfig.as_str()),
            ("leader-elect", "false"),
            ("bind-address", "127.0.0.1"),
            ("cert-dir", folder),
        ];
        let mut flags = common.to_vec();
        flags.push(("service-account-private-key-file", &key));
        self.start_program(lab, "kube-controller-manager", &flags)?;
        self.start_program(lab, "kube-scheduler", &common)?;
        Ok(())
    }

    fn start_program(&self, lab: &Lab, name: &str, flags: &[(&str, &str)]) -> anyhow::Result<Process> {
        let mut command = self.programs.command(name);
        command.args(flags.iter().map(|(flag, value)| format!("--{flag}={value}")));
        lab.start(MEMBER, name, &self.namespace, &mut command)
    }
}

/// The list in the answer of [`ControlPlane::get`].
///
/// # Errors
/// When it is not a list.
pub fn items(answer: &Value) -> anyhow::Result<&Vec<Value>> {
    let items = answer.get("items").and_then(Value::as_array);
    ensure!(items.is_some(), "kubectl printed no list: {answer}");
    items.context("it was just seen")
}
