//! What a client in a Pod may expect of Services, after kube-proxy's own end-to-end tests: a list
//! of cases that hold with the node's kube-proxy alone and with Remora in the Pod.
//!
//! In: a [`crate::Client`]. Out: nothing, or a panic. A case never asks which way its connections
//! go; those of [`fail_open`] and [`contained`] do, and are about Remora alone.

pub mod affinity;
pub mod changes;
pub mod contained;
pub mod fail_open;
pub mod outside;
pub mod policies;
pub mod ports;
pub mod reach;

/// Cases at the same time: their nodes and their cluster are shared, their Services are not.
pub const AT_A_TIME: usize = 4;

/// The main function of a test binary that runs cases: each of `both` three times, by the names
/// `CASE_with_kube_proxy`, `CASE_with_remora` and `CASE_on_demand`, each of `alone` once. With `remora: off`, those
/// with Remora are left out. Those of `both` run some at a time, since they mostly wait for others;
/// those of `alone` measure, and run one by one.
#[macro_export]
macro_rules! cases {
    (
        remora: $remora:ident,
        both: { $($module:ident: [$($case:ident),+ $(,)?]),+ $(,)? },
        alone: { $($own_module:ident: [$($own:ident),+ $(,)?]),+ $(,)? } $(,)?
    ) => {
        fn main() -> std::process::ExitCode {
            let mut tests = vec![$($(
                $crate::cases!(@both concat!(stringify!($case), "_with_kube_proxy"), KubeProxy, $module, $case)
            ),+),+];
            let mut alone = Vec::new();
            if $crate::cases!(@is $remora) {
                tests.extend([$($(
                    $crate::cases!(@both concat!(stringify!($case), "_with_remora"), Remora, $module, $case)
                ),+),+]);
                tests.extend([$($(
                    $crate::cases!(@both concat!(stringify!($case), "_on_demand"), OnDemand, $module, $case)
                ),+),+]);
                alone.extend([$($(
                    $crate::world::Test {
                        name: stringify!($own),
                        run: |world| Box::pin(async move {
                            let client = $crate::Client::start(world, $crate::Way::Remora).await;
                            $crate::cases::$own_module::$own(&client).await;
                        }),
                    }
                ),+),+]);
            }
            $crate::world::main_of(vec![($crate::cases::AT_A_TIME, tests), (1, alone)])
        }
    };
    (@is on) => { true };
    (@is off) => { false };
    (@both $name:expr, $way:ident, $module:ident, $case:ident) => {
        $crate::world::Test {
            name: $name,
            run: |world| Box::pin(async move {
                let client = $crate::Client::start(world, $crate::Way::$way).await;
                $crate::cases::$module::$case(&client).await;
                client.finish().await;
            }),
        }
    };
}
