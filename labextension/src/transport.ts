/** The way to the gateway: through Jupyter's server, or, where that has no way, over the comm. */

/** Asks the gateway; `path` is the gateway's own, such as `/api/apps`. */
export interface ITransport {
  fetch(path: string, init?: RequestInit): Promise<Response>;
}

/** Goes through the server extension below Jupyter's base URL; kernels are not involved. */
export class ProxyTransport implements ITransport {
  constructor(
    readonly base: string,
    private readonly token = ''
  ) {}

  fetch(path: string, init: RequestInit = {}): Promise<Response> {
    const headers = new Headers(init.headers);
    const xsrf = /(?:^|; )_xsrf=([^;]*)/.exec(document.cookie)?.[1];
    if (xsrf) {
      headers.set('X-XSRFToken', xsrf);
    }
    if (this.token) {
      headers.set('Authorization', `token ${this.token}`);
    }
    return fetch(`${this.base}fal${path}`, { ...init, headers, credentials: 'same-origin' });
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
