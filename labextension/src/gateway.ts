/** The plugin that offers the way to the gateway. */

import { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';

import { ServerTransport } from './request';
import { IGateway } from './tokens';
import { ITransport } from './transport';

export const gateway: JupyterFrontEndPlugin<ITransport> = {
  id: 'fal-notebook:gateway',
  description: 'Asks the gateway of fal_notebook through the Jupyter server.',
  autoStart: true,
  provides: IGateway,
  activate: (app: JupyterFrontEnd) => new ServerTransport(app.serviceManager.serverSettings)
};
