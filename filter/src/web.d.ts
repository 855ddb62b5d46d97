/** Where a table is built for. Without a node nothing is local, without a zone no hint for zones counts. */
export interface Here {
    node?: string;
    zone?: string;
}

/** What pieces of a feed brought. */
export interface Progress {
    /** There may be a new table. */
    complete: boolean;
    /** How many milliseconds ago the server's own table was in step with its source, if it told. */
    age: number | null;
}

export type Protocol = "TCP" | "UDP" | "SCTP";

/** A port of a Service in one family, as `remora endpoints -o json` has it. Endpoints are `ADDRESS:PORT`. */
export interface ServicePort {
    /** `NAMESPACE/NAME` */
    service: string;
    family: "IPv4" | "IPv6";
    /** Its name, empty if it has none. */
    port: string;
    protocol: Protocol;
    clusterIP: string;
    servicePort: number;
    /** 0 if there is none. */
    nodePort: number;
    externalIPs: string[];
    loadBalancerVIPs: string[];
    sourceRanges: string[];
    /** 0 without session affinity. */
    affinitySeconds: number;
    /** 0 if there is none. */
    healthCheckNodePort: number;
    internalLocal: boolean;
    externalLocal: boolean;
    /** The endpoints that may serve here under policy Cluster. */
    cluster: string[];
    /** The endpoints that may serve here under policy Local. */
    local: string[];
    /** Some endpoint in the cluster is usable, perhaps only elsewhere. */
    hasAny: boolean;
}

/** An endpoint that may serve here. */
export interface Endpoint {
    /** `ADDRESS:PORT` */
    address: string;
    /** Its Pod's identity in hexadecimal digits, zeros if it is unknown. */
    pod: string;
    /** It serves under policy Cluster. */
    inCluster: boolean;
    /** It serves under policy Local. */
    inLocal: boolean;
}

/** Everything that a pick depends on. Either an address was dialled, or a Service and its port are named. */
export type Inquiry = Asked & ({ address: string; protocol?: Protocol } | { service: string; port: string });

export interface Asked {
    /** `ADDRESS:PORT` */
    client: string;
    /** The client is a Pod or a node of the cluster. Default true. */
    inside?: boolean;
    /** The secret that draws are made from. Default 0, 0. */
    seed?: [bigint, bigint];
    /** How many picks of the port came before. Default 0. */
    turn?: number | bigint;
    /** The time in milliseconds, from any origin. Default 0. */
    now?: number;
    /** Active connections of endpoints; who is not named has none. */
    loads?: [endpoint: string, connections: number][];
    /** Endpoints that are put aside. */
    aside?: string[];
    /** Endpoints that this connection tried already. */
    tried?: string[];
    /** What the client got from its last pick. */
    pin?: Pin | null;
}

/** What becomes of a connection: an endpoint takes it, it is refused, it is dropped without a word, it is not ours. */
export type Outcome = "endpoint" | "refuse" | "drop" | "pass";

export interface Reply {
    outcome: Outcome;
    endpoint: string | null;
    /** With session affinity, what the client holds from here on. */
    pin: Pin | null;
}

/** Which endpoint a client stays with. To be kept and given back, for each client and Service port. */
export interface Pin {
    address: string;
    pod: string;
    used: number;
    seconds: number;
}

/** A connection that somebody might make. */
export interface Connection {
    /** `ADDRESS:PORT` */
    address: string;
    protocol?: Protocol;
    /** `ADDRESS:PORT`; port 0 stands for any. */
    client?: string;
    /** The client is a Pod or a node of the cluster. Default true. */
    inside?: boolean;
}

/** What becomes of a connection and why, as `remora explain -o json` has it. */
export interface Story {
    address: string;
    protocol: Protocol;
    client: string | null;
    inside: boolean;
    service: string | null;
    port: string | null;
    outcome: Outcome;
    endpoint: string | null;
    steps: Step[];
}

export interface Step {
    /** A word that stays. */
    step: string;
    /** A sentence for people. */
    text: string;
}
