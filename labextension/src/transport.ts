/** The way to the gateway: through Jupyter's server, or, where that has no way, over the comm. */

/** Asks the gateway; `path` is the gateway's own, such as `/api/apps`. */
export interface ITransport {
  /** Where it leads, the same for all of a page that share it; '' where each has its own. */
  readonly url: string;
  fetch(path: string, init?: RequestInit): Promise<Response>;
}

/** Goes through the server extension below Jupyter's base URL; kernels are not involved. */
export class ProxyTransport implements ITransport {
  readonly url: string;

  constructor(
    base: string,
    private readonly token = ''
  ) {
    this.url = new URL(`${base}fal`, location.href).href;
  }

  fetch(path: string, init: RequestInit = {}): Promise<Response> {
    const headers = new Headers(init.headers);
    const xsrf = /(?:^|; )_xsrf=([^;]*)/.exec(document.cookie)?.[1];
    if (xsrf) {
      headers.set('X-XSRFToken', xsrf);
    }
    if (this.token) {
      headers.set('Authorization', `token ${this.token}`);
    }
    return fetch(`${this.url}${path}`, { ...init, headers, credentials: 'same-origin' });
  }
}

/** The part of anywidget's model that carries messages. */
export interface IComm {
  send(content: unknown, callbacks?: unknown, buffers?: ArrayBuffer[]): void;
  on(name: 'msg:custom', callback: (message: IMessage, buffers: DataView[]) => void): void;
  off(name: 'msg:custom', callback: (message: IMessage, buffers: DataView[]) => void): void;
}

interface IMessage {
  op: 'head' | 'piece' | 'end' | 'failed';
  id: string;
  status?: number;
  headers?: Record<string, string>;
  message?: string;
}

const PIECE = 1024 * 1024;
/** What a 404 means that is none of the gateway's. */
const NO_WAY = "Jupyter's server has no way to the gateway: enable its extension fal_notebook.server";
/** Statuses whose answers have no body; `Response` refuses one. */
const BODILESS = [101, 204, 205, 304];

/** Goes through the kernel, in pieces of at most 1 MiB; an answer comes as fast as it is read. */
export class CommTransport implements ITransport {
  readonly url = '';

  constructor(private readonly comm: IComm) {}

  async fetch(path: string, init: RequestInit = {}): Promise<Response> {
    const { comm } = this;
    const id = crypto.getRandomValues(new Uint32Array(4)).join('-');
    const body = await new Response(init.body).arrayBuffer();
    const headers = Object.fromEntries(new Headers(init.headers));
    const answer = this.answer(id, init.signal ?? null);
    comm.send({ op: 'request', id, method: init.method ?? 'GET', path, headers, size: body.byteLength });
    for (let at = 0; at < body.byteLength; at += PIECE) {
      comm.send({ op: 'body', id }, undefined, [body.slice(at, at + PIECE)]);
    }
    return answer;
  }

  private answer(id: string, signal: AbortSignal | null): Promise<Response> {
    const { comm } = this;
    return new Promise((resolve, reject) => {
      let stream: ReadableStreamDefaultController<Uint8Array>;
      const body = new ReadableStream<Uint8Array>(
        {
          start: controller => void (stream = controller),
          pull: () => comm.send({ op: 'more', id }),
          cancel: () => end()
        },
        { highWaterMark: 0 }
      );
      const onMessage = (message: IMessage, buffers: DataView[]): void => {
        if (message.id !== id) {
          return;
        }
        if (message.op === 'head') {
          const empty = BODILESS.includes(message.status ?? 0);
          resolve(new Response(empty ? null : body, { status: message.status, headers: message.headers }));
        } else if (message.op === 'piece') {
          buffers.forEach(view => stream.enqueue(new Uint8Array(view.buffer, view.byteOffset, view.byteLength)));
        } else {
          comm.off('msg:custom', onMessage);
          const error = new Error(message.message);
          message.op === 'end' ? stream.close() : (stream.error(error), reject(error));
        }
      };
      const end = (): void => {
        comm.off('msg:custom', onMessage);
        comm.send({ op: 'cancel', id });
      };
      comm.on('msg:custom', onMessage);
      signal?.addEventListener('abort', () => {
        end();
        stream.error(signal.reason);
        reject(signal.reason as Error);
      });
    });
  }
}

/** Return the way through Jupyter's server of this page, null where the page is another host's. */
export function ofThisPage(): ProxyTransport | null {
  const config = document.getElementById('jupyter-config-data')?.textContent;
  if (!config) {
    return null;
  }
  const { baseUrl, token } = JSON.parse(config) as { baseUrl?: string; token?: string };
  return baseUrl ? new ProxyTransport(baseUrl, token) : null;
}

/** Return the id of the gateway at the end of a way, '' where there is none. */
export async function gatewayOf(transport: ITransport): Promise<string> {
  try {
    const reply = await transport.fetch('/api/gateway');
    return reply.ok ? ((await reply.json()) as { id: string }).id : '';
  } catch {
    return '';
  }
}

/** Return an answer that is one; any other is an error with what the gateway says of it. */
export async function checked(reply: Response): Promise<Response> {
  if (reply.ok) {
    return reply;
  }
  const said = (await reply.json().catch(() => ({}))) as { detail?: unknown };
  if (typeof said.detail === 'string') {
    throw new Error(said.detail);
  }
  throw new Error(reply.status === 404 ? NO_WAY : `The gateway answered ${reply.status}`);
}
