/** The anywidget (AFM): a card that Python makes and, once the deploy is over, the gateway keeps. */

import { ICard, isOver, readCard } from './card';
import { CardView } from './cardView';
import { follow } from './follow';
import { CommTransport, IComm, ITransport, gatewayOf, ofThisPage } from './transport';

/** The part of anywidget's model that is used here. */
interface IModel extends Omit<IComm, 'on' | 'off'> {
  get(name: string): unknown;
  on(name: string, callback: (...args: never[]) => void): void;
  off(name: string, callback: (...args: never[]) => void): void;
}

export default {
  render({ model, el }: { model: IModel; el: HTMLElement }): (() => void) | undefined {
    const first = readCard(model.get('card'));
    if (!first) {
      el.textContent = 'This output cannot be read. Run the cell again.';
      return undefined;
    }
    const view = new CardView(first);
    const ended = new AbortController();
    let follows = false;
    const look = (): void => {
      const card = readCard(model.get('card'));
      if (!card || follows) {
        return;
      }
      view.update(card);
      if (isOver(card)) {
        follows = true;
        const told = (now: ICard, remark: string): void => view.update(now, remark);
        void wayFor(card, model).then(way => follow(card, way, told, ended.signal));
      }
    };
    el.append(view.node);
    model.on('change:card', look);
    look();
    return () => {
      ended.abort();
      model.off('change:card', look);
      view.dispose();
    };
  }
};

/** Return the way to the gateway that has the app: the kernel may run where Jupyter's server does not. */
async function wayFor(card: ICard, model: IModel): Promise<ITransport> {
  const page = ofThisPage();
  return page && (await gatewayOf(page)) === card.gateway ? page : new CommTransport(model);
}
