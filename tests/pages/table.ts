// Follows a feed and reports, with each table that it completes, everything that the module tells of it.
import init, { Mirror } from "./remora.js";
import type { Connection, Endpoint, Here, Inquiry, Pin, Reply, ServicePort, Step, Story } from "./remora.js";

/** What the site wants to know. */
interface Questions {
    here: Here;
    connections: (Connection & { client: string })[];
}

// Every field of the types, and no other: the compiler sees to it. Whether values have just these is looked at below.
const SERVICE_PORT: Record<keyof ServicePort, true> = {
    service: true, family: true, port: true, protocol: true, clusterIP: true, servicePort: true, nodePort: true,
    externalIPs: true, loadBalancerVIPs: true, sourceRanges: true, affinitySeconds: true, healthCheckNodePort: true,
    internalLocal: true, externalLocal: true, cluster: true, local: true, hasAny: true,
};
const ENDPOINT: Record<keyof Endpoint, true> = { address: true, pod: true, inCluster: true, inLocal: true };
const REPLY: Record<keyof Reply, true> = { outcome: true, endpoint: true, pin: true };
const PIN: Record<keyof Pin, true> = { address: true, pod: true, used: true, seconds: true };
const STORY: Record<keyof Story, true> = {
    address: true, protocol: true, client: true, inside: true, service: true, port: true, outcome: true, endpoint: true,
    steps: true,
};
const STEP: Record<keyof Step, true> = { step: true, text: true };

function shaped<T extends object>(value: T, fields: Record<keyof T, true>): T {
    const [found, expected] = [value, fields].map((object) => Object.keys(object).sort().join());
    if (found !== expected) throw new Error(`a value has the fields ${found}, its type ${expected}`);
    return value;
}

async function report(word: string, body: string): Promise<void> {
    await fetch(`/report/${word}`, { method: "POST", body });
}

/** What a wrong call says: one sentence of an Error. */
function failure(call: () => unknown): string {
    try {
        call();
    } catch (error) {
        if (error instanceof Error) return error.message;
    }
    throw new Error("a wrong call did not fail with an Error");
}

function tell(mirror: Mirror, questions: Questions): object {
    const services: ServicePort[] = mirror.services().map((port) => shaped(port, SERVICE_PORT));
    const endpoints: Record<string, Endpoint[]> = {};
    for (const { service, port, servicePort } of services) {
        endpoints[`${service}:${servicePort}`] =
            mirror.endpoints(service, port || String(servicePort)).map((endpoint) => shaped(endpoint, ENDPOINT));
    }
    const stories: Story[] = questions.connections.map((connection) => shaped(mirror.explain(connection), STORY));
    stories.forEach((story) => story.steps.forEach((step) => shaped(step, STEP)));
    const replies: Reply[] = questions.connections.map(({ address, client, inside, protocol }) => {
        const more = { ...(inside === undefined ? {} : { inside }), ...(protocol === undefined ? {} : { protocol }) };
        const inquiry: Inquiry = { address, client, ...more };
        const reply = shaped(mirror.pick(inquiry), REPLY);
        if (reply.pin !== null) {
            shaped(reply.pin, PIN);
            // Who holds a pin stays, whatever chance says.
            const again = mirror.pick({ ...inquiry, pin: reply.pin, seed: [1n, 2n ** 64n - 1n], turn: 2n ** 63n, now: 5 });
            if (again.endpoint !== reply.endpoint) throw new Error("a pin was not understood");
        }
        return reply;
    });
    const wrong = {
        address: failure(() => mirror.pick({ address: "nowhere", client: "10.1.2.3:4" })),
        service: failure(() => mirror.endpoints("Shop", "80")),
        // @ts-expect-error: an inquiry names its client.
        client: failure(() => mirror.pick({ address: "10.96.0.1:80" })),
    };
    return { version: mirror.version, services, endpoints, stories, replies, wrong };
}

async function main(): Promise<void> {
    await init();
    const questions = (await (await fetch("/questions.json")).json()) as Questions;
    const mirror = new Mirror(questions.here);
    const empty = mirror.services();
    if (mirror.version !== 0 || empty.length !== 0) throw new Error("there is a table before the first");
    const noFeed = failure(() => mirror.read(new Uint8Array([0, 0, 0, 1, 7])));
    mirror.begin();
    const feed = await fetch("/v1/feed");
    if (!feed.ok || feed.body === null) throw new Error(`the feed answers ${feed.status}: ${await feed.text()}`);
    const reader = feed.body.getReader();
    for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const { complete, age } = mirror.read(value);
        if (complete) await report("table", JSON.stringify({ age, noFeed, ...tell(mirror, questions) }));
    }
    await report("end", "the feed has ended");
}

main().catch((error: unknown) => report("failed", String(error)));
