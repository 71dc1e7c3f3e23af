import CIntFlashAttention
import IntFlashAttention
import IntFlashAttentionCUDA

extension Precision {
  /// The precision of this name; NULL is the default.
  init(named name: UnsafePointer<CChar>?) throws(AttentionError) {
    guard let name = unsafe name else {
      self = .int8
      return
    }
    let text = unsafe String(cString: name)
    guard let precision = Precision(rawValue: text) else {
      throw AttentionError(
        .invalidArgument,
        "precision is '\(text)'; it must be one of "
          + Precision.allCases.map(\.rawValue).joined(separator: ", ")
      )
    }
    self = precision
  }
}

extension AttentionOptions {
  /// The options of a call with this shape; NULL is all defaults.
  init(
    _ pointer: UnsafePointer<intfa_options>?,
    shape: AttentionShape
  ) throws(AttentionError) {
    self = unsafe try Self.read(pointer, default: .full) { (blocks) throws(AttentionError) in
      try blocks.lists(for: shape)
    }
  }

  /// The options of a call on caches whose queries stand at these positions; NULL is causal with the
  /// other defaults.
  init(
    _ pointer: UnsafePointer<intfa_options>?,
    positions: [Range<Int>]
  ) throws(AttentionError) {
    self = unsafe try Self.read(pointer, default: .causal) { (blocks) throws(AttentionError) in
      try blocks.lists(forPositions: positions)
    }
  }

  private static func read(
    _ pointer: UnsafePointer<intfa_options>?,
    default mask: AttentionMask,
    lists: (CVisibleBlocks) throws(AttentionError) -> VisibleBlocks
  ) throws(AttentionError) -> AttentionOptions {
    guard let pointer = unsafe pointer else { return AttentionOptions(mask: mask) }
    let options = unsafe try CStruct.read(pointer, "options", intfa_options())
    let blocks = unsafe options.blocks
    return AttentionOptions(
      softmaxScale: unsafe options.softmax_scale.map { unsafe $0.pointee },
      softcap: unsafe options.softcap.map { unsafe $0.pointee },
      mask: unsafe try AttentionMask(options),
      blocks: unsafe blocks == nil ? nil : try lists(CVisibleBlocks(blocks))
    )
  }
}

extension AttentionMask {
  init(_ options: intfa_options) throws(AttentionError) {
    let kind = unsafe Int(options.mask)
    let left = unsafe options.window_left.map { unsafe Int($0.pointee) }
    let right = unsafe options.window_right.map { unsafe Int($0.pointee) }
    let prefix = unsafe Int(options.prefix)
    guard (left == nil && right == nil) || kind == INTFA_MASK_SLIDING else {
      throw AttentionError(
        .invalidArgument,
        "options: a window is given, but mask is \(kind); it must be INTFA_MASK_SLIDING"
      )
    }
    guard prefix == 0 || kind == INTFA_MASK_PREFIX_CAUSAL else {
      throw AttentionError(
        .invalidArgument,
        "options: prefix is \(prefix), but mask is \(kind); it must be INTFA_MASK_PREFIX_CAUSAL"
      )
    }
    switch kind {
    case INTFA_MASK_FULL: self = .full
    case INTFA_MASK_CAUSAL: self = .causal
    case INTFA_MASK_SLIDING: self = .sliding(left: left, right: right)
    case INTFA_MASK_PREFIX_CAUSAL: self = .prefixCausal(prefix: prefix)
    default:
      throw AttentionError(
        .invalidArgument,
        "options: mask is \(kind), which is not one of intfa_mask_kind"
      )
    }
  }
}

/// The backend that a struct describes.
func makeBackend(
  _ pointer: UnsafePointer<intfa_backend>?
) throws(AttentionError) -> any AttentionBackend {
  guard let pointer = unsafe pointer else { return CPUBackend() }
  let backend = unsafe try CStruct.read(pointer, "backend", intfa_backend())
  let name = unsafe backend.name.map { unsafe String(cString: $0) } ?? "cpu"
  let device = unsafe Int(backend.device)
  let threads = unsafe backend.thread_count.map { unsafe Int($0.pointee) }
  let instructions = unsafe backend.instruction_set.map { unsafe String(cString: $0) }
  if device != 0 && name != "cuda" {
    throw AttentionError(
      .invalidArgument,
      "backend: device is \(device), but backend '\(name)' has one device, 0"
    )
  }
  for (member, isGiven) in [
    ("thread_count", threads != nil), ("instruction_set", instructions != nil),
  ] where isGiven && name != "cpu" {
    throw AttentionError(
      .invalidArgument,
      "backend: \(member) is given, but backend '\(name)' does not take it"
    )
  }
  switch name {
  case "cpu":
    return CPUBackend(threadCount: threads, instructionSet: try instructions.map(instructionSet))
  case "cuda":
    return device == INTFA_CURRENT_DEVICE
      ? CUDABackend(on: try CUDADevice.current()) : CUDABackend(device: device)
  case "reference": return ReferenceBackend()
  default:
    throw AttentionError(
      .invalidArgument,
      "backend: name is '\(name)'; it must be cpu, cuda or reference"
    )
  }
}

private func instructionSet(_ name: String) throws(AttentionError) -> InstructionSet {
  guard let set = InstructionSet(rawValue: name) else {
    throw AttentionError(
      .invalidArgument,
      "backend: instruction_set is '\(name)'; it must be one of "
        + InstructionSet.allCases.map(\.rawValue).joined(separator: ", ")
    )
  }
  return set
}
