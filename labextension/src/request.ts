/** The way to the gateway in JupyterLab: with its own settings, so that any base URL and token do. */

import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

import { ITransport } from './transport';

/** Asks the gateway by JupyterLab's own connection to its server. */
export class ServerTransport implements ITransport {
  readonly url: string;

  constructor(private readonly settings: ServerConnection.ISettings) {
    this.url = URLExt.join(settings.baseUrl, 'fal');
  }

  fetch(path: string, init: RequestInit = {}): Promise<Response> {
    return ServerConnection.makeRequest(this.url + path, init, this.settings);
  }
}
