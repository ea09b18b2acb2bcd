/** Draws a card: framework-free, the same in JupyterLab, in Notebook 7 and wherever anywidget runs. */

import { ICard, IStep, isDeploying } from './card';
import { h } from './dom';

const STEPS_SHOWN = 6;
const LOG_SHOWN = 50;

/** Texts in the reader's language; English without a catalogue. */
export type Translate = (text: string) => string;

/** One card in the page. */
export class CardView {
  readonly node = h('div', { class: 'fal-Card' });
  private readonly timer: ReturnType<typeof setInterval>;

  constructor(
    private card: ICard,
    private readonly t: Translate = text => text
  ) {
    this.draw();
    this.timer = setInterval(() => isDeploying(this.card) && this.drawSteps(), 1000);
  }

  /** Show what has become of the app; `remark` says what the reader should know of the card itself. */
  update(card: ICard, remark = ''): void {
    this.card = card;
    this.draw(remark);
  }

  /** Stop counting. */
  dispose(): void {
    clearInterval(this.timer);
  }

  private readonly steps = h('ol', { class: 'fal-Card-steps' });

  private draw(remark = ''): void {
    const { card, t } = this;
    const notes = card.notes.map(note => h('div', { class: 'fal-Card-note' }, note));
    const error = card.error ? [h('div', { class: 'fal-Card-error', role: 'alert' }, card.error)] : [];
    const log = (card.error || isDeploying(card)) && card.log.length ? [this.logTail()] : [];
    const said = remark ? [h('div', { class: 'fal-Card-remark' }, t(remark))] : [];
    this.drawSteps();
    this.node.replaceChildren(this.head(), ...notes, this.steps, ...error, ...log, ...said);
  }

  private head(): HTMLElement {
    const { card, t } = this;
    const state = h('span', { class: 'fal-Card-state', role: 'status', 'data-state': tone(card) }, t(card.state));
    const revision = card.number ? [h('span', {}, `${t('revision')} ${card.number}`)] : [];
    return h('div', { class: 'fal-Card-head' }, h('b', {}, card.name), state, ...revision, ...(card.url ? this.url() : []));
  }

  private url(): HTMLElement[] {
    const { card, t } = this;
    const copy = h('button', { type: 'button', class: 'fal-Card-copy', 'aria-label': `${t('Copy')} URL` }, t('Copy'));
    copy.addEventListener('click', () => {
      void navigator.clipboard.writeText(card.url).then(
        () => copy.replaceChildren(t('Copied')),
        () => copy.replaceChildren(t('Select it to copy'))
      );
    });
    return [h('code', { class: 'fal-Card-url' }, card.url), copy];
  }

  private drawSteps(): void {
    const shown = isDeploying(this.card) ? this.card.steps.slice(-STEPS_SHOWN) : [];
    this.steps.replaceChildren(...shown.map(stepItem));
    this.steps.hidden = shown.length === 0;
  }

  private logTail(): HTMLElement {
    const lines = this.card.log.slice(-LOG_SHOWN).join('\n');
    return h('pre', { class: 'fal-Card-log', tabindex: '0', 'aria-label': this.t('Last lines of the log') }, lines);
  }
}

function stepItem(step: IStep): HTMLElement {
  const seconds = Math.max(0, (step.ended ?? Date.now() / 1000) - step.began);
  const time = seconds >= 0.05 ? ` (${seconds.toFixed(step.ended === null ? 0 : 1)} s)` : '';
  const item = h('li', {}, `${step.text}${time}`);
  if (step.ended === null && step.part !== null) {
    item.append(h('progress', { max: '1', value: String(step.part), 'aria-label': step.text }));
  }
  if (step.ended === null && step.said) {
    item.append(h('div', { class: 'fal-Card-said' }, step.said));
  }
  return item;
}

function tone(card: ICard): string {
  if (card.error) {
    return 'bad';
  }
  return isDeploying(card) ? 'busy' : 'good';
}
