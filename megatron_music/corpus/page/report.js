"use strict";
// A dual-track clip is stereo, one track a side. These buttons put both, or one of them, in the middle.
let context = null;

function connect(audio) {
  context = context || new AudioContext();
  const source = context.createMediaElementSource(audio);
  const splitter = context.createChannelSplitter(2);
  source.connect(splitter);
  return [0, 1].map((channel) => {
    const gain = context.createGain();
    gain.channelCount = 1;
    gain.channelCountMode = "explicit";
    splitter.connect(gain, channel);
    gain.connect(context.destination);
    return gain;
  });
}

for (const player of document.querySelectorAll(".player[data-left]")) {
  const audio = player.querySelector("audio");
  const choices = { both: [1, 1], [player.dataset.left]: [1, 0], [player.dataset.right]: [0, 1] };
  const buttons = document.createElement("span");
  let gains = null;
  let chosen = "both";
  const apply = () => gains && choices[chosen].forEach((level, channel) => { gains[channel].gain.value = level; });
  audio.addEventListener("play", () => {
    gains = gains || connect(audio);
    context.resume();
    apply();
  });
  for (const name of Object.keys(choices)) {
    const button = document.createElement("button");
    button.textContent = name;
    button.setAttribute("aria-pressed", name === chosen);
    button.addEventListener("click", () => {
      chosen = name;
      apply();
      for (const other of buttons.children) other.setAttribute("aria-pressed", other === button);
    });
    buttons.append(button);
  }
  player.querySelector(".sides").replaceWith(buttons);
}
