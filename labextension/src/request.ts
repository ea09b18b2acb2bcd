/** The way to the gateway in JupyterLab: with its own settings, so that any base URL and token do. */

import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

import { ITransport } from './transport';

/** Asks the gateway by JupyterLab's own connection to its server. */
export class ServerTransport implements ITransport {
  constructor(private readonly settings: ServerConnection.ISettings) {}

  fetch(path: string, init: RequestInit = {}): Promise<Response> {
    const url = URLExt.join(this.settings.baseUrl, 'fal') + path;
    return ServerConnection.makeRequest(url, init, this.settings);
  }
}
