/** The anywidget (AFM): a card that Python and, where there is a way, the gateway keep up to date. */

import { readCard } from './card';
import { CardView } from './cardView';
import { follow } from './follow';
import { ofThisPage } from './transport';

/** The part of anywidget's model that is used here. */
interface IModel {
  get(name: string): unknown;
  on(name: string, callback: () => void): void;
  off(name: string, callback: () => void): void;
}

export default {
  render({ model, el }: { model: IModel; el: HTMLElement }): (() => void) | undefined {
    const first = readCard(model.get('card'));
    if (!first) {
      el.textContent = 'This output cannot be read. Run the cell again.';
      return undefined;
    }
    const view = new CardView(first);
    el.append(view.node);
    const ended = new AbortController();
    const changed = (): void => {
      const card = readCard(model.get('card'));
      if (card) {
        view.update(card);
      }
    };
    model.on('change:card', changed);
    const transport = ofThisPage();
    if (transport) {
      void follow(first, transport, (card, remark) => view.update(card, remark), ended.signal);
    }
    return () => {
      ended.abort();
      model.off('change:card', changed);
      view.dispose();
    };
  }
};
