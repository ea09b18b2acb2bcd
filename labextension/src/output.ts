/** The renderer of our outputs: live while the kernel has their widget, else the app by its name. */

import { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';
import { IRenderMime } from '@jupyterlab/rendermime-interfaces';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';
import { PanelLayout, Widget } from '@lumino/widgets';

import { ICard, MIME, isDeploying, readCard } from './card';
import { CardView, Translate } from './cardView';
import { follow } from './follow';
import { IGateway } from './tokens';
import { ITransport, gatewayOf } from './transport';

const VIEW = 'application/vnd.jupyter.widget-view+json';
/** Before that of ipywidgets (-10), which shows an error where the kernel has no such widget. */
const RANK = -20;

/** What all outputs share: the way to the gateway, texts, and whether to follow at all. */
interface IContext {
  transport: ITransport;
  t: Translate;
  follows: () => Promise<boolean>;
}

/** One output. */
class Output extends Widget implements IRenderMime.IRenderer {
  private model: IRenderMime.IMimeModel | null = null;
  private shown = '';
  private turn = 0;

  constructor(
    private readonly panel: NotebookPanel,
    private readonly context: IContext
  ) {
    super();
    this.layout = new PanelLayout();
    this.addClass('fal-Output');
    const { sessionContext } = panel;
    sessionContext.kernelChanged.connect(this.look, this);
    sessionContext.connectionStatusChanged.connect(this.look, this);
    sessionContext.statusChanged.connect(this.onStatus, this);
    void sessionContext.ready.then(() => this.look());
  }

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    this.model = model;
    await this.look();
  }

  dispose(): void {
    const { sessionContext } = this.panel;
    sessionContext?.kernelChanged.disconnect(this.look, this);
    sessionContext?.connectionStatusChanged.disconnect(this.look, this);
    sessionContext?.statusChanged.disconnect(this.onStatus, this);
    super.dispose();
  }

  private onStatus(_: unknown, status: string): void {
    if (['restarting', 'autorestarting', 'dead'].includes(status)) {
      this.put('card', () => this.card());
    }
  }

  /** Look again which of both it is. */
  private async look(): Promise<void> {
    const { model } = this;
    if (this.isDisposed || !model) {
      return;
    }
    const turn = ++this.turn;
    const id = await this.liveWidget(model);
    if (this.isDisposed || turn !== this.turn) {
      return;
    }
    this.put(id ? `widget ${id}` : 'card', () => (id ? this.widget(model) : this.card()));
  }

  /** Return the id of the widget that the kernel has, '' when it has none. */
  private async liveWidget(model: IRenderMime.IMimeModel): Promise<string> {
    const view = model.data[VIEW] as { model_id?: string } | undefined;
    const kernel = this.panel.sessionContext.session?.kernel;
    if (!view?.model_id || !model.trusted || kernel?.connectionStatus !== 'connected') {
      return '';
    }
    const reply = await kernel.requestCommInfo({ target_name: 'jupyter.widget' }).catch(() => null);
    return reply?.content.status === 'ok' && view.model_id in reply.content.comms ? view.model_id : '';
  }

  private put(what: string, make: () => Widget): void {
    if (what === this.shown && what !== 'card') {
      return;
    }
    this.shown = what;
    const layout = this.layout as PanelLayout;
    for (const widget of [...layout.widgets]) {
      widget.dispose();
    }
    layout.addWidget(make());
  }

  private widget(model: IRenderMime.IMimeModel): Widget {
    const renderer = this.panel.content.rendermime.createRenderer(VIEW);
    void renderer.renderModel(model);
    return renderer;
  }

  private card(): Widget {
    const card = readCard(this.model?.data[MIME]);
    return card ? new Card(settled(card), this.context) : unreadable(this.context.t);
  }
}

/** A card that follows its app by name, without a kernel, if the reader wants that. */
class Card extends Widget {
  private readonly view: CardView;
  private readonly ended = new AbortController();

  constructor(
    private readonly card: ICard,
    private readonly context: IContext
  ) {
    super();
    this.view = new CardView(card, context.t);
    this.node.append(this.view.node);
    if (!card.error) {
      void this.follow();
    }
  }

  dispose(): void {
    this.ended.abort();
    this.view.dispose();
    super.dispose();
  }

  /** Follow the app, unless it is one of the same name on another machine. */
  private async follow(): Promise<void> {
    const { card, context, ended, view } = this;
    if (!(await context.follows())) {
      view.update(card, 'This is what was saved.');
      return;
    }
    if (!card.gateway) {
      view.update(card, 'This was saved before the deploy began. Run the cell to deploy the app.');
      return;
    }
    const gateway = await gatewayOf(context.transport);
    if (gateway && gateway !== card.gateway) {
      view.update(card, 'This is what was saved elsewhere. Run the cell to deploy the app here.');
      return;
    }
    follow(card, context.transport, (now, remark) => view.update(now, remark), ended.signal);
  }
}

/** Return a card whose deploy nobody tells of any more, so that its time does not count up. */
function settled(card: ICard): ICard {
  return isDeploying(card) ? { ...card, state: 'unknown', steps: [] } : card;
}

function unreadable(t: Translate): Widget {
  const widget = new Widget();
  widget.node.textContent = t('This output cannot be read. Run the cell again.');
  return widget;
}

export const output: JupyterFrontEndPlugin<void> = {
  id: 'fal-notebook:output',
  description: 'Shows the outputs of fal_notebook, live or as they were saved.',
  autoStart: true,
  requires: [INotebookTracker, IGateway],
  optional: [ISettingRegistry, ITranslator],
  activate: (
    _: JupyterFrontEnd,
    tracker: INotebookTracker,
    transport: ITransport,
    registry: ISettingRegistry | null,
    translator: ITranslator | null
  ) => {
    const trans = (translator ?? nullTranslator).load('fal_notebook');
    const settings = registry?.load(output.id).catch(() => null);
    const follows = async (): Promise<boolean> => (await settings)?.get('follow').composite !== false;
    const context = { transport, follows, t: (text: string) => trans.gettext(text) };
    const add = (panel: NotebookPanel): void => {
      const createRenderer = (): Output => new Output(panel, context);
      panel.content.rendermime.addFactory({ safe: true, mimeTypes: [MIME], createRenderer }, RANK);
    };
    tracker.forEach(add);
    tracker.widgetAdded.connect((_, panel) => add(panel));
  }
};
