/** What plugins of this extension offer each other. */

import { Token } from '@lumino/coreutils';

import { ITransport } from './transport';

/** The way to the gateway through Jupyter's server. */
export const IGateway = new Token<ITransport>('fal-notebook:IGateway', 'Asks the gateway of fal_notebook through the Jupyter server.');
