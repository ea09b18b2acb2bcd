/** The plugins of the JupyterLab extension. */

import { gateway } from './gateway';
import { output } from './output';

export default [gateway, output];
